"""Who cancels what runs is answered once it is over."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from api import waiting
from store.pools import DictConnection
from tasks.jobs import CANCELLED_BY_USER
from tests.integration.api.producer import Producer, RunningJob
from tests.support.waiting import until

BODY = {"model": "tiny", "input": "hello", "background": True}


async def _running(http: httpx.AsyncClient, producer: Producer) -> tuple[str, RunningJob]:
    """A response that its worker has begun with."""
    created = (await http.post("/v1/responses", json=BODY)).json()
    job = producer.claim()
    job.say("so far")
    return created["id"], job


async def _is_asked_for(owner: DictConnection) -> None:
    await until(
        lambda: (
            owner.execute("SELECT FROM jobs WHERE cancel_requested_at IS NOT NULL").fetchone()
            is not None
        )
    )


@pytest.mark.parametrize("route", ["/v1/responses/{id}/cancel", "/v1/jobs/{id}/cancel"])
async def test_a_cancel_waits_for_the_end(
    http: httpx.AsyncClient, owner: DictConnection, producer: Producer, route: str
) -> None:
    id_, job = await _running(http, producer)
    path = route.format(id=id_ if "responses" in route else job.id)

    asking = [asyncio.create_task(http.post(path)) for _ in range(2)]
    await _is_asked_for(owner)
    # Not on the loop: a request that asks holds the job's row until it has a turn there.
    await asyncio.to_thread(producer.finish, job, CANCELLED_BY_USER)
    answers = [*await asyncio.gather(*asking), await http.post(path)]

    assert [answer.json()["status"] for answer in answers] == ["cancelled"] * 3
    assert "so far" in answers[0].text


async def test_what_ends_by_itself_meanwhile_is_answered_as_it_ended(
    http: httpx.AsyncClient, owner: DictConnection, producer: Producer
) -> None:
    id_, job = await _running(http, producer)

    asking = asyncio.create_task(http.post(f"/v1/responses/{id_}/cancel"))
    await _is_asked_for(owner)
    await asyncio.to_thread(producer.finish, job)

    assert (await asking).json()["status"] == "completed"
    assert (await http.post(f"/v1/responses/{id_}/cancel")).json()["status"] == "completed"


async def test_a_cancel_waits_no_longer_than_it_may(
    http: httpx.AsyncClient, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "CANCEL_WAIT_S", 0.1)
    id_, _ = await _running(http, producer)

    answer = await http.post(f"/v1/responses/{id_}/cancel")

    assert (answer.status_code, answer.json()["status"]) == (200, "in_progress")


async def test_while_a_cancel_waits_it_holds_no_turn_and_no_connection(
    http: httpx.AsyncClient,
    owner: DictConnection,
    producer: Producer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "CANCEL_WAIT_S", 30.0)
    id_, job = await _running(http, producer)

    asking = [asyncio.create_task(http.post(f"/v1/responses/{id_}/cancel")) for _ in range(40)]
    await _is_asked_for(owner)
    async with asyncio.timeout(20):
        looked = await http.get(f"/v1/responses/{id_}")
    # Not on the loop: a request that asks holds the job's row until it has a turn there.
    await asyncio.to_thread(producer.finish, job, CANCELLED_BY_USER)
    answers = await asyncio.gather(*asking)

    assert looked.json()["status"] == "in_progress"
    assert {answer.json()["status"] for answer in answers} == {"cancelled"}
