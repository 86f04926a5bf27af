"""The synchronous client. What to send and what to decide stands in the modules it imports."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from millrace import calls, config, outcome
from millrace.calls import Call
from millrace.estimates import Estimate
from millrace.params import CreateJobParams
from millrace.resources import Batches, Files, Jobs, Models, UsageReports
from millrace.steps import Fetch, Pause, Step, Steps
from millrace.streams import EventSession
from millrace.types import Event

T = TypeVar("T")


class Client:
    """Reads MILLRACE_URL and MILLRACE_API_KEY where no arguments are given. Thread-safe."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        max_retries: int = config.DEFAULT_MAX_RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(
            base_url=config.base_url(url), headers=config.headers(api_key), transport=transport
        )
        self._max_retries = max_retries
        self.jobs = Jobs(self)
        self.files = Files(self)
        self.batches = Batches(self)
        self.models = Models(self)
        self.usage = UsageReports(self)

    def estimate(self, **params: Unpack[CreateJobParams]) -> Estimate:
        """What a job would cost, and when it would end. Nothing is submitted."""
        return self._run(calls.estimate(params))

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, call: Call[T]) -> T:
        max_retries = self._max_retries if call.can_repeat else 0
        return call.read(self._answer(lambda: self._send(call), max_retries))

    def _drive(self, steps: Steps[T]) -> T:
        """Perform steps; what goes wrong is raised in the generator, which may know what to do."""
        try:
            step = next(steps)
            while True:
                try:
                    result = self._perform(step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _perform(self, step: Step) -> Any:
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        if isinstance(step, Fetch):
            return self._answer(lambda: self._fetch(step), self._max_retries)
        return self._run(step)

    def _answer(self, send: Callable[[], httpx.Response], max_retries: int) -> httpx.Response:
        """Try until it succeeds, or is no use."""
        for attempt in itertools.count():
            try:
                response = send()
                retry = outcome.after_answer(attempt, response)
            except httpx.TransportError as error:
                retry = outcome.after_failure(attempt, error)
            if retry is None:
                return response
            if attempt >= max_retries:
                raise retry.error
            time.sleep(retry.delay_s)
        raise AssertionError("unreachable")

    def _send(self, call: Call[T]) -> httpx.Response:
        with call.body() as body:
            return self._http.request(call.method, call.path, **body, **call.options())

    def _fetch(self, fetch: Fetch) -> httpx.Response:
        with self._http.stream(
            "GET", fetch.path, headers=fetch.headers(), timeout=config.timeout(0)
        ) as response:
            if not response.is_success:
                response.read()
                return response
            fetch.start(response)
            for data in response.iter_bytes():
                fetch.sink.write(data)
        return response

    def _stream(self, session: EventSession) -> Iterator[Event]:
        while True:
            with suppress(httpx.TransportError):
                yield from self._stream_once(session)
            if session.is_done:
                return
            time.sleep(session.delay_before_resuming())

    def _stream_once(self, session: EventSession) -> Iterator[Event]:
        with self._http.stream(
            "GET", session.path, headers=session.headers(), timeout=config.STREAM_TIMEOUT
        ) as response:
            if not response.is_success:
                response.read()
                outcome.after_answer(0, response)  # raises what no retry helps against
                return
            for data in response.iter_bytes():
                yield from session.feed(data)
                if session.is_done:
                    return
