"""No answer holds the event loop, however long it is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import httpx
import pytest

from store.pools import DictConnection
from tests.integration.api.conftest import Tenant, serve_api
from tests.support.largest import Answer, Owner
from tests.support.largest_requests import Request, send
from tests.support.loop_lag import Worst, watch_callbacks

# The aim is 50 ms, on a machine that does nothing else. This is CPU time of one callback, which is
# a multiple of that on a busy one; before answers were cut each of these cases took seconds.
MOST_CPU_S = 0.3

ANSWER = Answer(num_tokens=700, num_choices=8, top_logprobs=5)
ONE = Answer(num_tokens=5_600, num_choices=1, top_logprobs=5)


@contextmanager
def serve_in_thread() -> Iterator[tuple[str, Worst]]:
    """The API on a loop of its own, so that what a test does isn't counted."""
    started: Future[tuple[str, asyncio.AbstractEventLoop]] = Future()
    stop = asyncio.Event()

    async def serve() -> None:
        async with serve_api() as url:
            started.set_result((url, asyncio.get_running_loop()))
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    url, loop = started.result(timeout=60)
    try:
        with watch_callbacks(loop) as worst:
            yield url, worst
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


@pytest.fixture
def owned(owner: DictConnection, tenant: Tenant, catalog: None) -> Owner:
    return Owner(owner, tenant.id, "tiny")


@pytest.mark.slow
def test_long_answers_are_sent_in_pieces(environment: None, owned: Owner, tenant: Tenant) -> None:
    job = owned.jobs("job", ANSWER, 100)[-1]
    chat, completion = owned.job("chat", ANSWER), owned.job("completion", ANSWER)
    response = owned.job("response", ONE, request={"model": "tiny", "input": "x"})
    paths = [
        f"/v1/jobs/job_{job.hex}/events",
        f"/v1/jobs/job_{job.hex}",
        "/v1/jobs?limit=100",
        f"/v1/chat/completions/chatcmpl-{chat.hex}",
        f"/v1/chat/completions/chatcmpl-{chat.hex}/events",
        f"/v1/completions/cmpl-{completion.hex}",
        f"/v1/completions/cmpl-{completion.hex}/events",
        f"/v1/responses/resp_{response.hex}",
        f"/v1/responses/resp_{response.hex}?stream=true",
    ]

    held = {}
    with (
        serve_in_thread() as (url, worst),
        httpx.Client(base_url=url, headers=tenant.headers, trust_env=False) as client,
    ):
        client.get("/v1/models").raise_for_status()
        for path in paths:
            worst.reset()
            assert send(client, ("GET", path), Request(path)) == 200, path
            held[path] = (worst.cpu_s, worst.callback)
        worst.reset()
        body = b'{"a":[' + b"[],{}," * 160_000 + b"1]}"
        assert send(client, ("POST", ""), Request("/v1/jobs", body)) == 400
        held["values"] = (worst.cpu_s, worst.callback)

    assert {path: of for path, of in held.items() if of[0] > MOST_CPU_S} == {}


async def test_what_is_sent_in_pieces_is_the_whole_answer(
    owned: Owner, http: httpx.AsyncClient
) -> None:
    job, chat = owned.job("job", ANSWER), owned.job("chat", ANSWER)
    completion = owned.job("completion", ANSWER, request={"model": "tiny", "prompt": "x"})
    response = owned.job("response", ONE, request={"model": "tiny", "input": "x"})
    values = ANSWER.logprobs()
    assert values is not None

    native = (await http.get(f"/v1/jobs/job_{job.hex}")).json()["output"]
    choices = (await http.get(f"/v1/chat/completions/chatcmpl-{chat.hex}")).json()["choices"]
    texts = (await http.get(f"/v1/completions/cmpl-{completion.hex}")).json()["choices"]
    item = (await http.get(f"/v1/responses/resp_{response.hex}")).json()["output"][0]
    listed = (await http.get("/v1/jobs?limit=1")).json()["data"][0]

    assert [choice["text"] for choice in native] == ["word" * 700] * 8
    assert all(choice["logprobs"]["values"] == values for choice in native)
    for choice in choices:
        shown = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        assert shown == [logprob for logprob, _ in values]
    for choice in texts:
        logprobs = choice["logprobs"]
        assert logprobs["token_logprobs"] == [logprob for logprob, _ in values]
        lengths = [len(token) for token in logprobs["tokens"]]
        assert logprobs["text_offset"] == [sum(lengths[:n]) for n in range(len(lengths))]
    assert len(item["content"][0]["logprobs"]) == ONE.num_tokens
    assert "logprobs" not in listed["output"][0]
