"""The asynchronous client: the same calls and decisions as the synchronous one, awaited."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from millrace import calls, config, outcome
from millrace.async_resources import (
    AsyncBatches,
    AsyncFiles,
    AsyncJobs,
    AsyncModels,
    AsyncUsageReports,
)
from millrace.calls import Call
from millrace.estimates import Estimate
from millrace.params import CreateJobParams
from millrace.steps import Fetch, Pause, Step, Steps
from millrace.streams import EventSession
from millrace.types import Event

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
        self.files = AsyncFiles(self)
        self.batches = AsyncBatches(self)
        self.models = AsyncModels(self)
        self.usage = AsyncUsageReports(self)

    async def estimate(self, **params: Unpack[CreateJobParams]) -> Estimate:
        """What a job would cost, and when it would end. Nothing is submitted."""
        return await self._run(calls.estimate(params))

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
        max_retries = self._max_retries if call.can_repeat else 0
        return call.read(await self._answer(lambda: self._send(call), max_retries))

    async def _drive(self, steps: Steps[T]) -> T:
        """Perform steps; what goes wrong is raised in the generator, which may know what to do."""
        try:
            step = next(steps)
            while True:
                try:
                    result = await self._perform(step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _perform(self, step: Step) -> Any:
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, Fetch):
            return await self._answer(lambda: self._fetch(step), self._max_retries)
        return await self._run(step)

    async def _answer(
        self, send: Callable[[], Awaitable[httpx.Response]], max_retries: int
    ) -> httpx.Response:
        """Try until it succeeds, or is no use."""
        for attempt in itertools.count():
            try:
                response = await send()
                retry = outcome.after_answer(attempt, response)
            except httpx.TransportError as error:
                retry = outcome.after_failure(attempt, error)
            if retry is None:
                return response
            if attempt >= max_retries:
                raise retry.error
            await asyncio.sleep(retry.delay_s)
        raise AssertionError("unreachable")

    async def _send(self, call: Call[T]) -> httpx.Response:
        with call.body() as body:
            return await self._http.request(call.method, call.path, **body, **call.options())

    async def _fetch(self, fetch: Fetch) -> httpx.Response:
        async with self._http.stream(
            "GET", fetch.path, headers=fetch.headers(), timeout=config.timeout(0)
        ) as response:
            if not response.is_success:
                await response.aread()
                return response
            fetch.start(response)
            async for data in response.aiter_bytes():
                fetch.sink.write(data)
        return response

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
