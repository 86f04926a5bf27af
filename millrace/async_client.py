"""The asynchronous client: the same calls and decisions as the synchronous one, awaited."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeVar, Unpack

import httpx

from millrace import calls, config, outcome
from millrace.calls import Call
from millrace.params import CreateJobParams
from millrace.streams import EventSession
from millrace.types import Event, Job, Model, Page, Usage

T = TypeVar("T")


class AsyncClient:
    """Reads MILLRACE_URL and MILLRACE_API_KEY where no arguments are given."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        max_retries: int = config.DEFAULT_MAX_RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=config.base_url(url), headers=config.headers(api_key), transport=transport
        )
        self._max_retries = max_retries
        self.jobs = AsyncJobs(self)
        self.models = AsyncModels(self)
        self.usage = AsyncUsageReports(self)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _run(self, call: Call[T]) -> T:
        for attempt in itertools.count():
            try:
                response = await self._send(call)
                retry = outcome.after_answer(attempt, response)
            except httpx.TransportError as error:
                retry = outcome.after_failure(attempt, error)
            if retry is None:
                return call.parse(response.json())
            if attempt >= self._max_retries:
                raise retry.error
            await asyncio.sleep(retry.delay_s)
        raise AssertionError("unreachable")

    async def _send(self, call: Call[T]) -> httpx.Response:
        return await self._http.request(
            call.method,
            call.path,
            params=call.params,
            json=call.json,
            headers=call.headers,
            timeout=config.timeout(call.extra_timeout_s),
        )

    async def _stream(self, session: EventSession) -> AsyncIterator[Event]:
        while True:
            with suppress(httpx.TransportError):
                async for event in self._stream_once(session):
                    yield event
            if session.is_done:
                return
            await asyncio.sleep(session.delay_before_resuming())

    async def _stream_once(self, session: EventSession) -> AsyncIterator[Event]:
        async with self._http.stream(
            "GET", session.path, headers=session.headers(), timeout=config.STREAM_TIMEOUT
        ) as response:
            if not response.is_success:
                await response.aread()
                outcome.after_answer(0, response)  # raises what no retry helps against
                return
            async for data in response.aiter_bytes():
                for event in session.feed(data):
                    yield event
                if session.is_done:
                    return


class AsyncJobs:
    """`client.jobs`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(
        self,
        *,
        idempotency_key: str | None = None,
        wait_s: float = 0.0,
        **params: Unpack[CreateJobParams],
    ) -> Job:
        """Submit a job. Returns once it is accepted, or when it is over within `wait_s` (<= 60)."""
        call = calls.create_job(params, idempotency_key=idempotency_key, wait_s=wait_s)
        return await self._client._run(call)

    async def get(self, job_id: str, *, wait_s: float = 0.0) -> Job:
        """The job; with `wait_s` (<= 60) as soon as it is over, at the latest after that time."""
        return await self._client._run(calls.get_job(job_id, wait_s=wait_s))

    async def cancel(self, job_id: str) -> Job:
        """Ask for the job's end. What it has produced is kept, and paid for."""
        return await self._client._run(calls.cancel_job(job_id))

    async def list(
        self, *, after: str | None = None, limit: int = 20, status: str | None = None
    ) -> Page[Job]:
        """Newest first, those older than the job `after`."""
        return await self._client._run(calls.list_jobs(after=after, limit=limit, status=status))

    def events(self, job_id: str, *, starting_after: int = 0) -> AsyncIterator[Event]:
        """Events until `done`. Resumes by itself where a connection broke."""
        return self._client._stream(EventSession(job_id, starting_after))


class AsyncModels:
    """`client.models`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def list(self) -> tuple[Model, ...]:
        """All models that take jobs."""
        return await self._client._run(calls.list_models())

    async def get(self, model: str) -> Model:
        """One model."""
        return await self._client._run(calls.get_model(model))


class AsyncUsageReports:
    """`client.usage`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def get(self, *, start_time: int | None = None, end_time: int | None = None) -> Usage:
        """Usage in a period of unix seconds, by default the last 30 days, and the balance now."""
        return await self._client._run(calls.get_usage(start_time=start_time, end_time=end_time))
