"""The synchronous client. What to send and what to decide stands in the modules it imports."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
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
        self.models = Models(self)
        self.usage = UsageReports(self)

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
        for attempt in itertools.count():
            try:
                response = self._send(call)
                retry = outcome.after_answer(attempt, response)
            except httpx.TransportError as error:
                retry = outcome.after_failure(attempt, error)
            if retry is None:
                return call.parse(response.json())
            if attempt >= self._max_retries:
                raise retry.error
            time.sleep(retry.delay_s)
        raise AssertionError("unreachable")

    def _send(self, call: Call[T]) -> httpx.Response:
        return self._http.request(
            call.method,
            call.path,
            params=call.params,
            json=call.json,
            headers=call.headers,
            timeout=config.timeout(call.extra_timeout_s),
        )

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


class Jobs:
    """`client.jobs`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(
        self,
        *,
        idempotency_key: str | None = None,
        wait_s: float = 0.0,
        **params: Unpack[CreateJobParams],
    ) -> Job:
        """Submit a job. Returns once it is accepted, or when it is over within `wait_s` (<= 60)."""
        call = calls.create_job(params, idempotency_key=idempotency_key, wait_s=wait_s)
        return self._client._run(call)

    def get(self, job_id: str, *, wait_s: float = 0.0) -> Job:
        """The job; with `wait_s` (<= 60) as soon as it is over, at the latest after that time."""
        return self._client._run(calls.get_job(job_id, wait_s=wait_s))

    def cancel(self, job_id: str) -> Job:
        """Ask for the job's end. What it has produced is kept, and paid for."""
        return self._client._run(calls.cancel_job(job_id))

    def list(
        self, *, after: str | None = None, limit: int = 20, status: str | None = None
    ) -> Page[Job]:
        """Newest first, those older than the job `after`."""
        return self._client._run(calls.list_jobs(after=after, limit=limit, status=status))

    def events(self, job_id: str, *, starting_after: int = 0) -> Iterator[Event]:
        """Events until `done`. Resumes by itself where a connection broke."""
        return self._client._stream(EventSession(job_id, starting_after))


class Models:
    """`client.models`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> tuple[Model, ...]:
        """All models that take jobs."""
        return self._client._run(calls.list_models())

    def get(self, model: str) -> Model:
        """One model."""
        return self._client._run(calls.get_model(model))


class UsageReports:
    """`client.usage`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, *, start_time: int | None = None, end_time: int | None = None) -> Usage:
        """Usage in a period of unix seconds, by default the last 30 days, and the balance now."""
        return self._client._run(calls.get_usage(start_time=start_time, end_time=end_time))
