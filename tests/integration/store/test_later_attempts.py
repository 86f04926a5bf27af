"""What a later attempt starts from, and what a job says of the ones before."""

from __future__ import annotations

from uuid import UUID

from store.attempts import requeue, save_checkpoints
from store.pools import DictConnection
from tests.integration.store.writes import checkpoint, claim, requeue_of, running_checkpoint
from tests.support.jobs import Jobs


def test_an_attempt_that_died_early_loses_no_text_of_the_one_before_it(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    job_id = jobs.add()
    first = claim(connection, worker_id, job_id)
    save_checkpoints(connection, [running_checkpoint(first, "hello")])
    _lose(jobs, job_id)
    second = claim(connection, worker_id, job_id)
    _lose(jobs, job_id)

    third = claim(connection, worker_id, job_id)

    assert (second.checkpoint.text, third.checkpoint.text) == ("hello", "hello")
    assert third.checkpoint == checkpoint("hello")


def test_a_running_job_has_no_reason_of_an_earlier_attempt(
    jobs: Jobs, connection: DictConnection, worker_id: UUID
) -> None:
    job_id = jobs.add()
    first = claim(connection, worker_id, job_id)
    requeue(connection, requeue_of(first, worker_id, reason="engine_error"))
    waiting = jobs.row(job_id)["reason"]

    claim(connection, worker_id, job_id)

    assert (waiting, jobs.row(job_id)["reason"]) == ("engine_error", None)


def _lose(jobs: Jobs, job_id: UUID) -> None:
    """The worker died: the job waits again, and the attempt stays as far as its last checkpoint."""
    with jobs.connect() as owner:
        owner.execute(
            "UPDATE jobs SET status = 'queued', worker_id = NULL WHERE id = %s", (job_id,)
        )
