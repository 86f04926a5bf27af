"""Chat completions over HTTP: one durable job behind every answer, whoever asks again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import openai
import pytest

from store.pools import DictConnection
from tests.integration.api.conftest import Tenant
from tests.integration.api.producer import Producer

BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
PATH = "/v1/chat/completions"
DEADLINE_S = 20.0


@pytest.fixture
async def client(api_url: str, tenant: Tenant) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{api_url}/v1", api_key=tenant.api_key, max_retries=0
    ) as client:
        yield client


async def _until(is_true: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not is_true():
            await asyncio.sleep(0.02)


def _num_jobs(owner: DictConnection) -> int:
    row = owner.execute("SELECT count(*) AS n FROM jobs").fetchone()
    assert row is not None
    return int(row["n"])


async def _queued(owner: DictConnection) -> None:
    await _until(lambda: _num_jobs(owner))


async def test_an_answer_is_waited_for(
    client: openai.AsyncOpenAI, owner: DictConnection, producer: Producer
) -> None:
    asked = asyncio.create_task(client.chat.completions.create(**BODY, n=2, service_tier="fast"))
    await _queued(owner)
    job = producer.claim()
    job.say("hi")
    job.say("ho", index=1)
    producer.finish(job)

    answer = await asked

    assert [choice.message.content for choice in answer.choices] == ["hi", "ho"]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.service_tier == "priority"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


async def test_a_stream_has_chunks_usage_and_an_end(
    client: openai.AsyncOpenAI, owner: DictConnection, producer: Producer
) -> None:
    async def read() -> list[Any]:
        stream = await client.chat.completions.create(
            **BODY, stream=True, stream_options={"include_usage": True}
        )
        return [chunk async for chunk in stream]

    reading = asyncio.create_task(read())
    await _queued(owner)
    job = producer.claim()
    for text in ("a", "b", "c"):
        job.say(text)
    producer.finish(job)

    chunks = await reading

    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "abc"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3


async def test_a_stream_goes_on_behind_any_event(
    http: httpx.AsyncClient, owner: DictConnection, producer: Producer
) -> None:
    asked = asyncio.create_task(http.post(PATH, json={**BODY, "stream": True}))
    await _queued(owner)
    job = producer.claim()
    for text in ("a", "b", "c"):
        job.say(text)
    producer.finish(job)
    whole = (await asked).text
    url = f"{PATH}/{job.id.replace('job_', 'chatcmpl-')}/events"

    resumed = await http.get(url, headers={"Last-Event-ID": "2"})
    all_again = await http.get(url)

    blocks = whole.split("\n\n")
    assert all_again.text == whole
    assert resumed.text.replace("retry: 1000\n", "").split("\n\n") == blocks[2:]


@pytest.mark.parametrize("headers", [{"Idempotency-Key": "k"}, {"x-stainless-retry-count": "1"}])
async def test_a_retry_attaches_to_the_running_job(
    http: httpx.AsyncClient,
    owner: DictConnection,
    producer: Producer,
    headers: dict[str, str],
) -> None:
    first_headers = {k: v for k, v in headers.items() if k == "Idempotency-Key"}
    first = asyncio.create_task(http.post(PATH, json=BODY, headers=first_headers))
    await _queued(owner)
    second = asyncio.create_task(http.post(PATH, json=BODY, headers=headers))
    job = producer.claim()
    job.say("hi")
    producer.finish(job)

    answers = [await first, await second]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    assert answers[1].headers["Idempotency-Replayed"] == "true"
    assert _num_jobs(owner) == 1


async def test_a_key_may_not_want_retries_attached(
    http: httpx.AsyncClient, owner: DictConnection, producer: Producer
) -> None:
    owner.execute("UPDATE api_keys SET attach_retries = false")
    headers = {"x-stainless-retry-count": "1"}

    tasks = [asyncio.create_task(http.post(PATH, json=BODY, headers=headers)) for _ in range(2)]
    await _until(lambda: _num_jobs(owner) == 2)

    for _ in tasks:
        job = producer.claim()
        job.say("hi")
        producer.finish(job)
    assert [(await task).status_code for task in tasks] == [200, 200]


class TestClientsThatLeave:
    """The grace is short here; in production it is 10 s."""

    @pytest.fixture
    def environment(self, environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MILLRACE_DISCONNECT_GRACE_S", "2.5")

    @pytest.mark.parametrize("stream", [True, False])
    async def test_their_jobs_are_cancelled_after_a_grace(
        self, http: httpx.AsyncClient, owner: DictConnection, stream: bool
    ) -> None:
        await self._ask_and_leave(http, owner, stream=stream)

        await _until(lambda: self._status(owner) == "cancelled")

    @pytest.mark.parametrize("policy", ["request", "key"])
    async def test_jobs_that_shall_go_on_do(
        self, http: httpx.AsyncClient, owner: DictConnection, producer: Producer, policy: str
    ) -> None:
        if policy == "key":
            owner.execute("UPDATE api_keys SET on_disconnect = 'continue'")
        extra = {"on_disconnect": "continue"} if policy == "request" else {}

        await self._ask_and_leave(http, owner, stream=True, **extra)

        row = owner.execute("SELECT on_disconnect FROM jobs").fetchone()
        assert row == {"on_disconnect": "continue"}
        job = producer.claim()
        job.say("hi")
        producer.finish(job)
        assert self._status(owner) == "completed"

    async def test_coming_back_within_the_grace_keeps_the_job(
        self, http: httpx.AsyncClient, owner: DictConnection, producer: Producer
    ) -> None:
        await self._ask_and_leave(http, owner, stream=True)
        job = producer.claim()
        back = asyncio.create_task(http.get(f"{PATH}/{job.id.replace('job_', 'chatcmpl-')}/events"))
        await asyncio.sleep(4)  # what is shown is that nothing happens for longer than the grace
        job.say("hi")
        producer.finish(job)

        assert '"content":"hi"' in (await back).text
        assert self._status(owner) == "completed"

    async def _ask_and_leave(
        self, http: httpx.AsyncClient, owner: DictConnection, *, stream: bool, **extra: Any
    ) -> None:
        asked = asyncio.create_task(http.post(PATH, json={**BODY, "stream": stream, **extra}))
        await _queued(owner)
        await asyncio.sleep(0.2)  # the answer has begun, or waits
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)

    def _status(self, owner: DictConnection) -> str:
        row = owner.execute("SELECT status FROM jobs").fetchone()
        assert row is not None
        return str(row["status"])


async def test_unknown_fields_are_ignored_and_named(
    http: httpx.AsyncClient, owner: DictConnection, producer: Producer
) -> None:
    body = {**BODY, "zeta": 1, "alpha": {}, "bad\nname": 1}
    asked = asyncio.create_task(http.post(PATH, json=body))
    await _queued(owner)
    job = producer.claim()
    producer.finish(job)

    answer = await asked

    assert answer.headers["x-millrace-ignored"] == "alpha, zeta"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("modalities", ["audio"]),
        ("functions", [{}]),
        ("reasoning_effort", "high"),
        ("web_search_options", {}),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
    ],
)
async def test_what_a_model_cannot_do_is_refused(
    http: httpx.AsyncClient, owner: DictConnection, field: str, value: Any
) -> None:
    answer = await http.post(PATH, json={**BODY, field: value})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert _num_jobs(owner) == 0


async def test_another_tenants_answer_is_not_there(
    http: httpx.AsyncClient,
    api_url: str,
    other_tenant: Tenant,
    owner: DictConnection,
    producer: Producer,
) -> None:
    asked = asyncio.create_task(http.post(PATH, json=BODY))
    await _queued(owner)
    producer.finish(producer.claim())
    id_ = (await asked).json()["id"]

    async with httpx.AsyncClient(base_url=api_url, headers=other_tenant.headers) as other:
        answers = [await other.get(f"{PATH}/{id_}"), await other.get(f"{PATH}/{id_}/events")]

    assert [answer.status_code for answer in answers] == [404, 404]
    assert (await http.get(f"{PATH}/{id_}")).status_code == 200
