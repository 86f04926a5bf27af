"""The end of an attempt: finish, requeue and checkpoints do nothing once the job has moved on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from store.attempts import Checkpoint, finish, requeue, save_checkpoints
from store.pools import DictConnection
from store.reaping import reap_lost
from tasks.jobs import ENGINE_ERROR
from tasks.token_ids import pack_token_ids
from tests.integration.store.writes import (
    OUTPUT,
    checkpoint,
    claim,
    count,
    expire,
    finish_of,
    lease,
    requeue_of,
    running_checkpoint,
)
from tests.support.jobs import Jobs


def _attempt(jobs: Jobs, job_id: UUID, attempt: int = 1) -> dict[str, Any]:
    rows = jobs.query(
        "SELECT * FROM job_attempts WHERE job_id = %s AND attempt = %s", (job_id, attempt)
    )
    return rows[0]


def test_finish_writes_state_result_and_outcome(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add())

    is_done = finish(connection, finish_of(claimed, worker_id))

    assert is_done
    row = jobs.row(claimed.job_id)
    assert (row["status"], row["worker_id"], row["error_code"]) == ("completed", None, None)
    assert (row["output_tokens"], row["cached_tokens"], row["cost_micros"]) == (4, 1, 6)
    assert (row["output"], row["last_seq"], row["event_log"]) == (OUTPUT, 5, b"events")
    outcome = jobs.query("SELECT * FROM job_outcomes")[0]
    assert (outcome["job_id"], outcome["payer"]) == (claimed.job_id, "tenant")
    assert (outcome["output_tokens"], outcome["settled_at"]) == (4, None)
    assert _attempt(jobs, claimed.job_id)["outcome"] == "ok"


@pytest.mark.parametrize(
    ("error_code", "shown"),
    [(None, "engine_error"), ("invalid_prompt", "invalid_prompt")],
    ids=["the reason", "a finer one"],
)
def test_a_failed_finish_says_what_went_wrong(
    jobs: Jobs, connection: DictConnection, worker_id: UUID, error_code: str | None, shown: str
) -> None:
    claimed = claim(connection, worker_id, jobs.add())
    end = finish_of(
        claimed,
        worker_id,
        ending=ENGINE_ERROR,
        attempt_outcome="error",
        output=[],
        error_code=error_code,
        error_message="The engine failed.",
    )

    is_done = finish(connection, end)

    assert is_done
    row = jobs.row(claimed.job_id)
    assert (row["status"], row["reason"]) == ("failed", "engine_error")
    assert row["error_code"] == shown
    assert (row["error_message"], row["error_retryable"]) == ("The engine failed.", True)
    assert jobs.query("SELECT payer FROM job_outcomes") == [{"payer": "platform"}]


def test_a_finish_of_an_old_attempt_is_refused(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    first = claim(connection, worker_id, jobs.add())
    requeue(connection, requeue_of(first, worker_id))
    claim(connection, worker_id, first.job_id)

    is_done = finish(connection, finish_of(first, worker_id))

    assert not is_done
    row = jobs.row(first.job_id)
    assert (row["status"], row["attempt"]) == ("in_progress", 2)
    assert count(jobs, "job_results") == count(jobs, "job_outcomes") == 0


def test_a_finish_by_another_worker_is_refused(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add())
    stranger = lease(connection)

    is_done = finish(connection, finish_of(claimed, stranger))

    assert not is_done
    assert jobs.row(claimed.job_id)["worker_id"] == worker_id
    assert count(jobs, "job_results") == count(jobs, "job_outcomes") == 0


def test_a_repeated_finish_counts_as_done_and_changes_nothing(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add())
    end = finish_of(claimed, worker_id)
    finish(connection, end)
    before = jobs.row(claimed.job_id)

    is_done = finish(connection, replace(end, output_tokens=9, cost_micros=99, output=[]))

    assert is_done
    assert jobs.row(claimed.job_id) == before
    assert count(jobs, "job_outcomes") == 1


def test_a_finish_repeated_by_another_worker_is_refused(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add())
    end = finish_of(claimed, worker_id)
    finish(connection, end)

    is_done = finish(connection, replace(end, worker_id=lease(connection)))

    assert not is_done


def test_a_finish_after_the_job_was_requeued_as_lost_is_refused(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add(max_fails=3))
    expire(jobs, worker_id)
    reap_lost(connection)

    is_done = finish(connection, finish_of(claimed, worker_id))

    assert not is_done
    assert jobs.row(claimed.job_id)["status"] == "queued"
    assert count(jobs, "job_outcomes") == 0


def test_a_finish_after_the_job_was_ended_as_lost_is_refused(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add(max_fails=1))
    expire(jobs, worker_id)
    reap_lost(connection)

    is_done = finish(connection, finish_of(claimed, worker_id))

    assert not is_done
    row = jobs.row(claimed.job_id)
    assert (row["status"], row["reason"]) == ("failed", "worker_lost")
    assert jobs.query("SELECT payer FROM job_outcomes") == [{"payer": "platform"}]


def test_a_finish_after_its_worker_gave_the_job_back_is_refused(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add())
    assert requeue(connection, requeue_of(claimed, worker_id))

    is_done = finish(connection, finish_of(claimed, worker_id))

    assert not is_done
    assert jobs.row(claimed.job_id)["status"] == "queued"
    assert count(jobs, "job_outcomes") == 0


def test_requeue_hands_the_checkpoint_to_the_next_attempt(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    first = claim(connection, worker_id, jobs.add())
    back = requeue_of(first, worker_id, checkpoint=checkpoint("four"), attempt_tokens=4)

    is_back = requeue(connection, back)

    assert is_back
    row = jobs.row(first.job_id)
    assert (row["status"], row["worker_id"], row["hinted_at"]) == ("queued", None, None)
    assert (row["reason"], row["fail_count"]) == ("worker_draining", 0)
    assert _attempt(jobs, first.job_id)["outcome"] == "drained"
    second = claim(connection, worker_id, first.job_id)
    assert (second.attempt, second.checkpoint) == (2, checkpoint("four"))


SPLIT = Checkpoint(
    seq=9, token_ids=pack_token_ids([1, 2, 3]), text="abcd", splits=((1, 1, None), (2, 3, "stop"))
)


def test_requeue_hands_on_where_the_choices_of_a_checkpoint_end(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    first = claim(connection, worker_id, jobs.add(num_choices=2))

    requeue(connection, requeue_of(first, worker_id, checkpoint=SPLIT, attempt_tokens=3))

    second = claim(connection, worker_id, first.job_id)
    assert (first.num_choices, second.num_choices) == (2, 2)
    assert second.checkpoint == SPLIT


def test_checkpoints_with_and_without_several_choices_are_saved_together(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    one = claim(connection, worker_id, jobs.add())
    two = claim(connection, worker_id, jobs.add(num_choices=2))

    save_checkpoints(
        connection,
        [running_checkpoint(one, "four"), running_checkpoint(two, "", checkpoint=SPLIT)],
    )

    nulls = "SELECT job_id FROM job_attempts WHERE checkpoint_splits IS NULL"
    assert jobs.query(nulls) == [{"job_id": one.job_id}], "no JSON null, which SQL doesn't skip"
    saved = _attempt(jobs, two.job_id)
    assert saved["checkpoint_splits"] == [[1, 1, None], [2, 3, "stop"]]
    assert saved["checkpoint_text"] == "abcd"


def test_requeue_after_a_failure_counts_it_and_waits(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add())
    back = requeue_of(
        claimed, worker_id, reason="engine_error", counts_as_failure=True, delay_s=60.0
    )

    requeue(connection, back)

    row = jobs.query("SELECT fail_count, run_after > now() AS waits FROM jobs")[0]
    assert row == {"fail_count": 1, "waits": True}
    assert _attempt(jobs, claimed.job_id)["outcome"] == "error"


def test_requeue_of_an_old_attempt_is_refused(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    first = claim(connection, worker_id, jobs.add())
    requeue(connection, requeue_of(first, worker_id))
    claim(connection, worker_id, first.job_id)

    is_back = requeue(connection, requeue_of(first, worker_id, checkpoint=checkpoint("late")))

    assert not is_back
    assert jobs.row(first.job_id)["status"] == "in_progress"
    assert _attempt(jobs, first.job_id)["checkpoint_text"] == ""


def test_requeue_by_another_worker_is_refused(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add())

    is_back = requeue(connection, requeue_of(claimed, lease(connection)))

    assert not is_back
    assert jobs.row(claimed.job_id)["worker_id"] == worker_id


def test_requeue_of_a_finished_job_is_refused(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add())
    finish(connection, finish_of(claimed, worker_id))

    is_back = requeue(connection, requeue_of(claimed, worker_id))

    assert not is_back
    assert jobs.row(claimed.job_id)["status"] == "completed"


def test_checkpoints_of_all_running_jobs_are_saved_together(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    running = [claim(connection, worker_id, jobs.add()) for _ in range(2)]

    save_checkpoints(
        connection,
        [running_checkpoint(running[0], "one"), running_checkpoint(running[1], "three")],
    )

    saved = [_attempt(jobs, claimed.job_id) for claimed in running]
    assert [row["checkpoint_text"] for row in saved] == ["one", "three"]
    assert [row["checkpoint_seq"] for row in saved] == [4, 6]
    assert [row["output_tokens"] for row in saved] == [3, 5]


@pytest.mark.parametrize("attempt", [1, 3])
def test_a_checkpoint_touches_its_own_attempt_only(
    jobs: Jobs, connection: DictConnection, worker_id: UUID, attempt: int
) -> None:
    first = claim(connection, worker_id, jobs.add())
    requeue(connection, requeue_of(first, worker_id, checkpoint=checkpoint("four")))
    second = claim(connection, worker_id, first.job_id)

    save_checkpoints(connection, [running_checkpoint(second, "stray", attempt=attempt)])

    assert _attempt(jobs, first.job_id, 1)["checkpoint_text"] == "four"
    assert _attempt(jobs, first.job_id, 2)["checkpoint_text"] == ""


def test_a_checkpoint_after_the_finish_is_left_out(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    ended = claim(connection, worker_id, jobs.add())
    running = claim(connection, worker_id, jobs.add())
    save_checkpoints(connection, [running_checkpoint(ended, "four")])
    finish(connection, finish_of(ended, worker_id))

    save_checkpoints(
        connection, [running_checkpoint(ended, "later"), running_checkpoint(running, "on")]
    )

    assert _attempt(jobs, ended.job_id)["checkpoint_text"] == "four"
    assert _attempt(jobs, running.job_id)["checkpoint_text"] == "on"
