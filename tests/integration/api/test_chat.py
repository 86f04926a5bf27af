"""Chat completions over HTTP: one durable job behind every answer, whoever asks again."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import httpx
import openai
import pytest

from api.cancelling import Canceller
from store.pools import DictConnection
from tasks.keys import stream_channel
from tests.integration.api.conftest import Tenant
from tests.integration.api.producer import Producer
from tests.integration.api.responding import is_queued
from tests.support.waiting import until

BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
PATH = "/v1/chat/completions"


def _num_jobs(owner: DictConnection) -> int:
    row = owner.execute("SELECT count(*) AS n FROM jobs").fetchone()
    assert row is not None
    return int(row["n"])


async def test_an_answer_is_waited_for(
    client: openai.AsyncOpenAI, owner: DictConnection, producer: Producer
) -> None:
    asked = asyncio.create_task(client.chat.completions.create(**BODY, n=2, service_tier="fast"))
    await is_queued(owner)
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
    await is_queued(owner)
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
    await is_queued(owner)
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
    await is_queued(owner)
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
    await until(lambda: _num_jobs(owner) == 2)

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
        self, http: httpx.AsyncClient, owner: DictConnection, producer: Producer, stream: bool
    ) -> None:
        await self._ask_and_leave(http, owner, producer, stream=stream)

        await until(lambda: self._status(owner) == "cancelled")

    @pytest.mark.parametrize("policy", ["request", "key"])
    async def test_jobs_that_shall_go_on_do(
        self, http: httpx.AsyncClient, owner: DictConnection, producer: Producer, policy: str
    ) -> None:
        if policy == "key":
            owner.execute("UPDATE api_keys SET on_disconnect = 'continue'")
        extra = {"on_disconnect": "continue"} if policy == "request" else {}

        await self._ask_and_leave(http, owner, producer, stream=True, **extra)

        row = owner.execute("SELECT on_disconnect FROM jobs").fetchone()
        assert row == {"on_disconnect": "continue"}
        job = producer.claim()
        job.say("hi")
        producer.finish(job)
        assert self._status(owner) == "completed"

    async def test_coming_back_within_the_grace_keeps_the_job(
        self,
        http: httpx.AsyncClient,
        owner: DictConnection,
        producer: Producer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        found: list[bool] = []  # readers, when the grace was over
        has_reader = Canceller._has_reader

        async def ask(canceller: Canceller, job_id: UUID) -> bool:
            found.append(await has_reader(canceller, job_id))
            return found[-1]

        monkeypatch.setattr(Canceller, "_has_reader", ask)
        await self._ask_and_leave(http, owner, producer, stream=True)
        job = producer.claim()
        back = asyncio.create_task(http.get(f"{PATH}/{job.id.replace('job_', 'chatcmpl-')}/events"))
        await until(lambda: found, what="the end of the grace")
        assert found == [True]
        job.say("hi")
        producer.finish(job)

        assert '"content":"hi"' in (await back).text
        assert self._status(owner) == "completed"

    async def _ask_and_leave(
        self,
        http: httpx.AsyncClient,
        owner: DictConnection,
        producer: Producer,
        *,
        stream: bool,
        **extra: Any,
    ) -> None:
        asked = asyncio.create_task(http.post(PATH, json={**BODY, "stream": stream, **extra}))
        await is_queued(owner)
        row = owner.execute("SELECT id FROM jobs").fetchone()
        assert row is not None
        channel = stream_channel(row["id"])
        await until(lambda: producer.redis.pubsub_numsub(channel)[0][1], what="a listener")
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)

    def _status(self, owner: DictConnection) -> str:
        row = owner.execute("SELECT status FROM jobs").fetchone()
        assert row is not None
        return str(row["status"])


async def test_unknown_fields_are_ignored_and_named_and_not_stored(
    http: httpx.AsyncClient, owner: DictConnection, producer: Producer
) -> None:
    part = {"type": "text", "text": "hello"}
    messages = [{"role": "user", "content": [part | {"y": 1}]}]
    body = {**BODY, "messages": messages, "zeta": 1, "alpha": {}, "bad\nname": 1}
    asked = asyncio.create_task(http.post(PATH, json=body))
    await is_queued(owner)
    job = producer.claim()
    producer.finish(job)

    answer = await asked

    assert answer.headers["x-millrace-ignored"] == "alpha, messages.0.content.0.y, zeta"
    stored = owner.execute("SELECT request FROM job_payloads").fetchone()
    assert stored == {"request": BODY | {"messages": [{"role": "user", "content": [part]}]}}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("modalities", ["audio"]),
        ("functions", [{}]),
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
    await is_queued(owner)
    producer.finish(producer.claim())
    id_ = (await asked).json()["id"]

    async with httpx.AsyncClient(base_url=api_url, headers=other_tenant.headers) as other:
        answers = [await other.get(f"{PATH}/{id_}"), await other.get(f"{PATH}/{id_}/events")]

    assert [answer.status_code for answer in answers] == [404, 404]
    assert (await http.get(f"{PATH}/{id_}")).status_code == 200
