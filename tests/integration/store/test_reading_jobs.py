"""What the API reads of jobs: one tenant's only, page by page."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

import orjson
import pytest

from store.attempts import finish
from store.jobs import (
    MAX_POSITION,
    finished_jobs,
    get_job,
    get_job_with_request,
    has_event_log,
    list_jobs,
    queue_position,
    read_event_log,
    read_logprobs,
)
from store.pools import AsyncPool, DictConnection
from tasks.errors import JobNotFound
from tasks.ids import uuid7
from tasks.jobs import JobStatus
from tasks.queues import ServiceTier
from tests.integration.store.conftest import AsApi
from tests.integration.store.writes import OUTPUT, another_tenant, claim, finish_of
from tests.support.jobs import Jobs
from tests.support.largest import Answer


def test_a_job_is_read_without_output_until_it_has_some(
    jobs: Jobs, as_api: AsApi, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add())
    running = as_api(lambda pool: get_job(pool, jobs.tenant_id, claimed.job_id))
    finish(connection, finish_of(claimed, worker_id))

    finished = as_api(lambda pool: get_job(pool, jobs.tenant_id, claimed.job_id))

    assert running is not None
    assert (running["status"], running["output"]) == ("in_progress", None)
    assert finished is not None
    assert (finished["status"], finished["output"]) == ("completed", OUTPUT)
    assert finished["last_seq"] == 5


def test_a_job_of_another_tenant_is_not_there(jobs: Jobs, as_api: AsApi) -> None:
    job_id, stranger = jobs.add(), another_tenant(jobs)

    found = as_api(lambda pool: get_job(pool, stranger, job_id))

    assert found is None


def test_an_unknown_job_is_not_there(jobs: Jobs, as_api: AsApi) -> None:
    unknown = uuid7()

    found = as_api(lambda pool: get_job(pool, jobs.tenant_id, unknown))

    assert found is None


def test_a_list_holds_the_tenants_own_jobs_newest_first(jobs: Jobs, as_api: AsApi) -> None:
    ours = [jobs.add() for _ in range(3)]
    jobs.add(tenant_id=another_tenant(jobs))

    rows = as_api(lambda pool: list_jobs(pool, jobs.tenant_id)).rows

    assert [row["id"] for row in rows] == ours[::-1]


def test_pages_add_up_to_the_whole_list(jobs: Jobs, as_api: AsApi) -> None:
    job_ids = [jobs.add() for _ in range(5)]

    async def all_pages(pool: AsyncPool) -> list[list[UUID]]:
        pages: list[list[UUID]] = []
        after: UUID | None = None
        while rows := (await list_jobs(pool, jobs.tenant_id, after=after, limit=2)).rows:
            pages.append([row["id"] for row in rows])
            after = pages[-1][-1]
        return pages

    pages = as_api(all_pages)

    newest_first = job_ids[::-1]
    assert pages == [newest_first[:2], newest_first[2:4], newest_first[4:]]


def test_a_job_added_between_two_pages_moves_nothing(jobs: Jobs, as_api: AsApi) -> None:
    old, new = jobs.add(), jobs.add()
    as_api(lambda pool: list_jobs(pool, jobs.tenant_id, limit=1))
    jobs.add()

    rows = as_api(lambda pool: list_jobs(pool, jobs.tenant_id, after=new, limit=1)).rows

    assert [row["id"] for row in rows] == [old]


def test_a_list_can_be_limited_to_a_status(
    jobs: Jobs, as_api: AsApi, connection: DictConnection, worker_id: UUID
) -> None:
    running = claim(connection, worker_id, jobs.add())
    jobs.add()

    rows = as_api(lambda pool: list_jobs(pool, jobs.tenant_id, status=JobStatus.IN_PROGRESS)).rows

    assert [row["id"] for row in rows] == [running.job_id]


def test_the_position_counts_jobs_ahead_in_pool_and_tier_of_all_tenants(
    jobs: Jobs, as_api: AsApi
) -> None:
    jobs.add(tenant_id=another_tenant(jobs))
    jobs.add()
    jobs.add(service_tier=ServiceTier.PRIORITY)
    jobs.add(pool="large")
    job_id = jobs.add()
    jobs.add()

    position = as_api(lambda pool: queue_position(pool, jobs.tenant_id, job_id))

    assert position == 2


def test_the_position_is_counted_up_to_a_bound(
    jobs: Jobs, as_api: AsApi, connection: DictConnection
) -> None:
    first = jobs.add()
    columns = connection.execute(
        "SELECT string_agg(column_name, ', ') AS names FROM information_schema.columns"
        " WHERE table_name = 'jobs' AND column_name <> 'id' AND is_generated = 'NEVER'"
    ).fetchone()
    assert columns is not None
    ahead = f"INSERT INTO jobs (id, {columns['names']}) SELECT %s, {columns['names']} FROM jobs"
    with connection.cursor() as cursor:
        cursor.executemany(
            f"{ahead} WHERE id = %s", [(uuid7(), first) for _ in range(MAX_POSITION + 5)]
        )
    job_id = jobs.add()

    position = as_api(lambda pool: queue_position(pool, jobs.tenant_id, job_id))

    assert position == MAX_POSITION


def test_the_first_job_in_the_queue_has_none_ahead(jobs: Jobs, as_api: AsApi) -> None:
    job_id = jobs.add()

    position = as_api(lambda pool: queue_position(pool, jobs.tenant_id, job_id))

    assert position == 0


def test_a_running_job_has_no_position(
    jobs: Jobs, as_api: AsApi, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add())

    position = as_api(lambda pool: queue_position(pool, jobs.tenant_id, claimed.job_id))

    assert position is None


def test_a_job_of_another_tenant_has_no_position(jobs: Jobs, as_api: AsApi) -> None:
    job_id, stranger = jobs.add(), another_tenant(jobs)

    position = as_api(lambda pool: queue_position(pool, stranger, job_id))

    assert position is None


def test_finished_jobs_are_picked_out_of_those_asked_for(
    jobs: Jobs, as_api: AsApi, connection: DictConnection, worker_id: UUID
) -> None:
    theirs = claim(connection, worker_id, jobs.add(tenant_id=another_tenant(jobs)))
    ours = claim(connection, worker_id, jobs.add())
    unasked = claim(connection, worker_id, jobs.add())
    for claimed in (theirs, ours, unasked):
        finish(connection, finish_of(claimed, worker_id))
    asked = [theirs.job_id, ours.job_id, jobs.add(), uuid7()]

    finished = as_api(lambda pool: finished_jobs(pool, asked))

    assert finished == {theirs.job_id, ours.job_id}


def test_no_job_asked_for_is_none_finished(jobs: Jobs, as_api: AsApi) -> None:
    jobs.add()

    finished = as_api(lambda pool: finished_jobs(pool, []))

    assert finished == set()


def test_the_event_log_is_the_tenants_alone(
    jobs: Jobs, as_api: AsApi, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add())
    finish(connection, finish_of(claimed, worker_id))
    stranger = another_tenant(jobs)

    ours = as_api(lambda pool: read_event_log(pool, jobs.tenant_id, claimed.job_id, 0, 1_000))
    theirs = as_api(lambda pool: read_event_log(pool, stranger, claimed.job_id, 0, 1_000))

    assert (ours, theirs) == (b"events", None)


def test_log_probabilities_of_a_job_that_is_deleted_meanwhile_are_no_shorter_list(
    jobs: Jobs, as_api: AsApi, connection: DictConnection, worker_id: UUID
) -> None:
    _finished(jobs, connection, worker_id)
    deleted = uuid7()

    async def read(pool: AsyncPool) -> list[tuple[str, str]]:
        return [row async for row in read_logprobs(pool, jobs.tenant_id, deleted, 0)]

    with pytest.raises(JobNotFound):
        as_api(read)


def test_log_probabilities_are_read_to_the_end_of_the_longest_answer(
    jobs: Jobs, as_api: AsApi, connection: DictConnection, worker_id: UUID
) -> None:
    claimed = claim(connection, worker_id, jobs.add())
    finish(connection, finish_of(claimed, worker_id))
    answer = Answer(num_tokens=40_000, num_choices=1, top_logprobs=0)
    update = "UPDATE job_results SET output = %s::text::jsonb WHERE job_id = %s"
    with jobs.connect() as owner:
        owner.execute(update, (answer.output().decode(), claimed.job_id))

    async def read(pool: AsyncPool) -> list[tuple[str, str]]:
        return [row async for row in read_logprobs(pool, jobs.tenant_id, claimed.job_id, 0)]

    rows = as_api(read)
    ids = [token_id for ids, _ in rows for token_id in orjson.loads(ids)]
    assert ids == [n % 200 + 10 for n in range(40_000)]
    assert [value for _, values in rows for value in orjson.loads(values)] == answer.logprobs()


def test_log_probabilities_are_those_of_the_choice_asked_for(
    jobs: Jobs, as_api: AsApi, connection: DictConnection, worker_id: UUID
) -> None:
    logprobs = [{"token_ids": [7 + n], "values": [[-1.0 - n, []]]} for n in range(2)]
    output = [{"index": n, "logprobs": logprobs[n]} for n in (1, 0)]
    job_id = _finished(jobs, connection, worker_id, output=output)
    _finished(jobs, connection, worker_id, output=output)

    async def read(pool: AsyncPool, choice: int) -> list[tuple[str, str]]:
        return [row async for row in read_logprobs(pool, jobs.tenant_id, job_id, choice)]

    assert as_api(partial(read, choice=0)) == [("[7]", "[[-1.0, []]]")]
    assert as_api(partial(read, choice=1)) == [("[8]", "[[-2.0, []]]")]


def test_a_job_among_others_is_read_with_what_is_its_own(
    jobs: Jobs, as_api: AsApi, connection: DictConnection, worker_id: UUID
) -> None:
    """Each of the tenant's jobs has a request, an output and a log of its own."""
    texts = ["one", "two", "three"]
    ids = [
        _finished(
            jobs,
            connection,
            worker_id,
            request={"model": text},
            output=[{"index": 0, "text": text}],
            event_log=text.encode(),
            last_seq=len(text),
        )
        for text in texts
    ]

    async def read(pool: AsyncPool, job_id: UUID) -> tuple[Any, ...]:
        job = await get_job(pool, jobs.tenant_id, job_id)
        whole = await get_job_with_request(pool, jobs.tenant_id, job_id)
        log = await read_event_log(pool, jobs.tenant_id, job_id, 0, 100)
        has_log = await has_event_log(pool, jobs.tenant_id, job_id)
        if job is None or whole is None:
            return job, whole, log, has_log
        names = ("id", "output", "last_seq")
        assert [job[name] for name in names] == [whole[name] for name in names]
        return job["id"], job["output"], job["last_seq"], whole["request"], log, has_log

    for job_id, text in zip(ids, texts, strict=True):
        output = [{"index": 0, "text": text}]
        expected = (job_id, output, len(text), {"model": text}, text.encode(), True)
        assert as_api(partial(read, job_id=job_id)) == expected
    assert as_api(partial(read, job_id=uuid7())) == (None, None, None, False)


def test_a_job_is_read_without_log_probabilities_but_says_which_choices_have_some(
    jobs: Jobs, as_api: AsApi, connection: DictConnection, worker_id: UUID
) -> None:
    choices: list[dict[str, Any]] = [{"index": n, "text": str(n)} for n in range(3)]
    lists = {"token_ids": [7], "values": [[-1.0, []]]}
    output = [choices[0] | {"logprobs": lists}, choices[1] | {"logprobs": None}, choices[2]]
    job_id = _finished(jobs, connection, worker_id, output=output)
    empty = _finished(jobs, connection, worker_id, output=[])

    row = as_api(lambda pool: get_job(pool, jobs.tenant_id, job_id))
    of_none = as_api(lambda pool: get_job(pool, jobs.tenant_id, empty))

    assert row is not None
    assert of_none is not None
    assert row["output"] == [choices[0] | {"logprobs": True}, *output[1:]]
    assert of_none["output"] == []


def test_a_job_is_read_with_its_age_and_the_time_that_it_still_has(
    jobs: Jobs, as_api: AsApi
) -> None:
    job_id = jobs.add()
    with jobs.connect() as owner:
        owner.execute(
            "UPDATE jobs SET created_at = now() - interval '100 s',"
            " deadline_at = now() + interval '500 s'"
        )

    row = as_api(lambda pool: get_job(pool, jobs.tenant_id, job_id))

    assert row is not None
    assert 100 <= row["age_s"] < 200
    assert 400 < row["remaining_s"] <= 500


def test_a_log_is_read_from_any_place_up_to_its_end(
    jobs: Jobs, as_api: AsApi, connection: DictConnection, worker_id: UUID
) -> None:
    job_id = _finished(jobs, connection, worker_id, event_log=b"0123456789")

    async def read(pool: AsyncPool) -> list[bytes | None]:
        parts = [(0, 4), (4, 4), (8, 4), (10, 4)]
        return [await read_event_log(pool, jobs.tenant_id, job_id, *part) for part in parts]

    assert as_api(read) == [b"0123", b"4567", b"89", b""]


def _finished(
    jobs: Jobs, connection: DictConnection, worker_id: UUID, *, request: Any = None, **fields: Any
) -> UUID:
    """A job that has ended so."""
    job_id = jobs.add(request=request or {"model": "stub"})
    finish(connection, finish_of(claim(connection, worker_id, job_id), worker_id, **fields))
    return job_id
