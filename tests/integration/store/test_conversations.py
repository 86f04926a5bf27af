"""What a conversation holds: which responses, how far back, and behind how many bytes."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from cli.stack.database import DatabaseUrls
from store.jobs import kept_s
from store.pools import AsyncPool, async_pool
from store.responses import MAX_CHAIN, MAX_CHAIN_BYTES, conversation, named_responses
from tasks.ids import RESPONSE_PREFIX, format_job_id, uuid7
from tests.integration.store.conftest import AsApi
from tests.integration.store.writes import another_tenant
from tests.support.jobs import Jobs

OUTPUT = '[{"text": "ä"}]'


def _response(jobs: Jobs, previous: UUID | str | None = None, **changes: Any) -> UUID:
    """One that is over, with an answer."""
    request: dict[str, Any] = {"input": "ö"} | changes.pop("request", {})
    if isinstance(previous, UUID):
        previous = format_job_id(previous, RESPONSE_PREFIX)
    request["previous_response_id"] = previous
    job_id = jobs.add(request=request, **{"dialect": "response", **changes})
    with jobs.connect() as owner:
        owner.execute(
            "INSERT INTO job_results (job_id, tenant_id, output, last_seq)"
            " SELECT id, tenant_id, %s::jsonb, 3 FROM jobs WHERE id = %s",
            (OUTPUT, job_id),
        )
        owner.execute(
            "UPDATE jobs SET status = 'completed', finished_at = now() WHERE id = %s", (job_id,)
        )
    return job_id


def _turns(as_api: AsApi, jobs: Jobs, job_id: UUID) -> list[dict[str, Any]]:
    return as_api(lambda pool: conversation(pool, jobs.tenant_id, job_id))


def _ids(as_api: AsApi, jobs: Jobs, job_id: UUID) -> list[UUID]:
    return [turn["id"] for turn in _turns(as_api, jobs, job_id)]


def _change(jobs: Jobs, job_id: UUID, changes: str) -> None:
    with jobs.connect() as owner:
        owner.execute(f"UPDATE jobs SET {changes} WHERE id = %s".encode(), (job_id,))


def test_a_conversation_says_of_each_response_how_far_back_it_is_and_behind_how_many_bytes(
    jobs: Jobs, as_api: AsApi
) -> None:
    first = _response(jobs)
    second = _response(jobs, first, request={"store": False})
    third = _response(jobs, second, tool_format="hermes")
    _response(jobs, third)  # goes on from it, and is none of its past

    turns = _turns(as_api, jobs, third)

    assert [turn["id"] for turn in turns] == [first, second, third]
    sizes = [len((turn["request"] + turn["output"]).encode()) for turn in turns]
    assert [turn["num_bytes"] for turn in turns] == [sizes[1] + sizes[2], sizes[2], 0]
    assert [turn["depth"] for turn in turns] == [3, 2, 1]
    assert [turn["previous_id"] for turn in turns] == [
        None,
        format_job_id(first, RESPONSE_PREFIX),
        format_job_id(second, RESPONSE_PREFIX),
    ]
    assert [turn["is_stored"] for turn in turns] == [True, False, True]
    assert [turn["tool_format"] for turn in turns] == [None, None, "hermes"]
    assert {(turn["status"], turn["output"]) for turn in turns} == {("completed", OUTPUT)}


def test_a_response_without_an_answer_is_a_turn_of_its_own_request(
    jobs: Jobs, as_api: AsApi
) -> None:
    first = _response(jobs)
    second = _response(jobs, first)
    third = _response(jobs, second)
    with jobs.connect() as owner:
        owner.execute("DELETE FROM job_results WHERE job_id IN (%s, %s)", (second, third))
    _change(jobs, third, "status = 'queued', finished_at = NULL")

    turns = _turns(as_api, jobs, third)

    assert [turn["id"] for turn in turns] == [first, second, third]
    assert [turn["output"] for turn in turns] == [OUTPUT, None, None]
    assert turns[1]["num_bytes"] == len(turns[2]["request"].encode())


@pytest.mark.parametrize(
    "changes",
    [
        "deleted_at = now()",
        "dialect = 'chat'",
        f"finished_at = now() - make_interval(secs => {kept_s() + 60})",
    ],
)
def test_what_is_no_response_any_more_is_in_no_conversation(
    jobs: Jobs, as_api: AsApi, changes: str
) -> None:
    first = _response(jobs)
    second = _response(jobs, first)
    _change(jobs, first, changes)

    assert _ids(as_api, jobs, first) == []
    assert _ids(as_api, jobs, second) == [second]


def test_a_response_is_there_for_as_long_as_results_are_kept(jobs: Jobs, as_api: AsApi) -> None:
    first = _response(jobs)
    _change(jobs, first, f"finished_at = now() - make_interval(secs => {kept_s() - 60})")

    assert _ids(as_api, jobs, first) == [first]


@pytest.mark.parametrize("previous", ["resp_x", "job_" + "0" * 32])
def test_what_is_no_id_of_a_response_begins_a_conversation(
    jobs: Jobs, as_api: AsApi, previous: str
) -> None:
    response = _response(jobs, previous)

    [turn] = _turns(as_api, jobs, response)

    assert (turn["id"], turn["previous_id"]) == (response, previous)


def test_a_conversation_is_followed_back_so_far_and_no_further(jobs: Jobs, as_api: AsApi) -> None:
    oldest = _response(jobs)
    ids = [oldest, *(uuid7() for _ in range(MAX_CHAIN))]
    named = [format_job_id(id_, RESPONSE_PREFIX) for id_ in ids]
    with jobs.connect() as owner:
        owner.execute(
            "INSERT INTO jobs SELECT new.* FROM jobs j, unnest(%s::uuid[]) AS n (id),"
            " LATERAL jsonb_populate_record(j, jsonb_build_object('id', n.id)) new",
            (ids[1:],),
        )
        owner.execute(
            "INSERT INTO job_payloads SELECT new.* FROM job_payloads p,"
            " unnest(%s::uuid[], %s::text[]) AS n (id, previous), LATERAL jsonb_populate_record(p,"
            " jsonb_build_object('job_id', n.id, 'request',"
            " jsonb_build_object('previous_response_id', n.previous))) new",
            (ids[1:], named[:-1]),
        )

    turns = _turns(as_api, jobs, ids[-1])
    whole = _turns(as_api, jobs, ids[-2])

    assert [turn["id"] for turn in turns] == ids[1:]
    assert (turns[0]["depth"], turns[0]["previous_id"]) == (MAX_CHAIN, named[0])
    assert [turn["id"] for turn in whole] == ids[:-1]
    assert whole[0]["previous_id"] is None


@pytest.mark.parametrize("num_spare", [0, 1])
def test_a_conversation_is_followed_back_behind_so_many_bytes_and_no_further(
    jobs: Jobs, as_api: AsApi, num_spare: int
) -> None:
    first = _response(jobs)
    second = _response(jobs, first)
    third = _response(jobs, second)
    with jobs.connect() as owner:
        owner.execute("DELETE FROM job_results WHERE job_id = %s", (third,))
        owner.execute(
            "UPDATE job_payloads SET request = request || jsonb_build_object('input',"
            " repeat('x', %s - octet_length(request::text) + octet_length(request->>'input')))"
            " WHERE job_id = %s",
            (MAX_CHAIN_BYTES - num_spare, third),
        )

    turns = _turns(as_api, jobs, third)

    expected = [first, second, third] if num_spare else [second, third]
    assert [turn["id"] for turn in turns] == expected
    assert turns[-2]["num_bytes"] == MAX_CHAIN_BYTES - num_spare


def test_a_conversation_goes_through_no_response_of_another_tenant(
    jobs: Jobs, database: DatabaseUrls
) -> None:
    """Not even where no row policy holds it back."""
    first = _response(jobs)
    others = _response(jobs, first, tenant_id=another_tenant(jobs))
    third = _response(jobs, others)

    async def ask(pool: AsyncPool, job_id: UUID) -> list[UUID]:
        return [turn["id"] for turn in await conversation(pool, jobs.tenant_id, job_id)]

    async def as_owner() -> list[list[UUID]]:
        async with async_pool(database.owner, application_name="test", max_size=2) as pool:
            return [await ask(pool, job_id) for job_id in (others, third)]

    assert asyncio.run(as_owner()) == [[], [third]]


def _named(as_api: AsApi, jobs: Jobs, wanted: dict[UUID, bool]) -> list[dict[str, Any]]:
    return as_api(lambda pool: named_responses(pool, jobs.tenant_id, wanted))


def test_named_responses_come_in_the_order_asked_for_with_inputs_where_wanted(
    jobs: Jobs, as_api: AsApi
) -> None:
    first, second = _response(jobs), _response(jobs, tool_format="hermes")

    rows = _named(as_api, jobs, {second: True, uuid7(): True, first: False})

    assert [(row["id"], row["input"], row["output"]) for row in rows] == [
        (second, '"ö"', OUTPUT),
        (first, None, OUTPUT),
    ]
    assert [row["tool_format"] for row in rows] == ["hermes", None]
    assert [row["num_bytes"] for row in rows] == [4 + 16, 4 + 16 + 16]


@pytest.mark.parametrize(
    "change",
    [
        "dialect = 'chat'",
        "is_stored = false",
        "deleted_at = now()",
        "finished_at = now() - interval '10 years'",
    ],
)
def test_a_named_response_that_is_not_kept_is_not_there(
    jobs: Jobs, as_api: AsApi, change: str
) -> None:
    gone, kept = _response(jobs), _response(jobs)
    _change(jobs, gone, change)

    assert [row["id"] for row in _named(as_api, jobs, {gone: True, kept: True})] == [kept]


def test_of_named_responses_no_more_is_read_than_one_may_have(jobs: Jobs, as_api: AsApi) -> None:
    large = [_response(jobs, request={"input": "x" * (MAX_CHAIN_BYTES // 2)}) for _ in range(4)]

    rows = _named(as_api, jobs, dict.fromkeys(large, True))
    outputs = _named(as_api, jobs, dict.fromkeys(large, False))

    assert [row["id"] for row in rows] == large[:2]
    assert rows[-1]["num_bytes"] >= MAX_CHAIN_BYTES
    assert [row["id"] for row in outputs] == large
