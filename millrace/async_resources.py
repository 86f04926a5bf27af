"""What `AsyncClient` offers, by subject. Decisions stand in the modules it imports."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from millrace import calls, steps
from millrace.batch_runs import BatchRun, OnProgress
from millrace.params import CreateJobParams
from millrace.streams import EventSession
from millrace.types import Batch, Event, File, Job, Model, Page, Usage
from millrace.uploads import Progress

if TYPE_CHECKING:
    from millrace.async_client import AsyncClient


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

    async def delete(self, job_id: str) -> bool:
        """What was asked and answered goes; one that runs is cancelled first."""
        return await self._client._run(calls.delete_job(job_id))

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


class AsyncFiles:
    """`client.files`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def upload(
        self,
        path: str | Path,
        *,
        purpose: str = "batch",
        filename: str | None = None,
        expires_after_s: int | None = None,
        progress: Progress | None = None,
    ) -> File:
        """Store a local file, streamed. `progress` gets bytes sent and bytes in all."""
        call = calls.upload_file(
            path,
            purpose=purpose,
            filename=filename,
            expires_after_s=expires_after_s,
            progress=progress,
        )
        return await self._client._run(call)

    async def get(self, file_id: str) -> File:
        """The file, without its contents."""
        return await self._client._run(calls.get_file(file_id))

    async def list(
        self,
        *,
        after: str | None = None,
        limit: int = 100,
        order: str | None = None,
        purpose: str | None = None,
    ) -> Page[File]:
        """Newest first, or by `order="asc"` oldest first; those after the file `after`."""
        call = calls.list_files(after=after, limit=limit, order=order, purpose=purpose)
        return await self._client._run(call)

    async def delete(self, file_id: str) -> bool:
        """Whether it is gone now."""
        return await self._client._run(calls.delete_file(file_id))

    async def download(
        self, file_id: str, path: str | Path, *, progress: Progress | None = None
    ) -> Path:
        """Write the contents to `path`, which appears when they are whole."""
        url = calls.file_content(file_id)
        return await self._client._drive(steps.download(url, Path(path), progress))


class AsyncBatches:
    """`client.batches`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(
        self,
        input_file_id: str,
        *,
        endpoint: str = "/v1/chat/completions",
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
    ) -> Batch:
        """Start a batch over an uploaded file. Never retried: a second batch would be paid for."""
        call = calls.create_batch(
            input_file_id,
            endpoint=endpoint,
            completion_window=completion_window,
            metadata=metadata,
        )
        return await self._client._run(call)

    async def get(self, batch_id: str) -> Batch:
        """The batch as it is."""
        return await self._client._run(calls.get_batch(batch_id))

    async def cancel(self, batch_id: str) -> Batch:
        """Ask for its end. What is done is kept, and paid for."""
        return await self._client._run(calls.cancel_batch(batch_id))

    async def delete(self, batch_id: str) -> bool:
        """Its jobs and what it wrote go with it; one that runs is cancelled first."""
        return await self._client._run(calls.delete_batch(batch_id))

    async def list(self, *, after: str | None = None, limit: int = 20) -> Page[Batch]:
        """Newest first, those older than the batch `after`."""
        return await self._client._run(calls.list_batches(after=after, limit=limit))

    async def run(
        self,
        path: str | Path,
        *,
        output: str | Path | None = None,
        errors: str | Path | None = None,
        endpoint: str = "/v1/chat/completions",
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        starts_over: bool = False,
        progress: OnProgress | None = None,
    ) -> Batch:
        """Upload a local file, run it as a batch to its end, and write results as they come.

        They go to FILE.out.jsonl and FILE.err.jsonl. FILE.millrace.json remembers the batch:
        called again for the same file, this takes it up. `starts_over` deletes results and makes a
        new one.
        """
        run = BatchRun.of(
            path,
            output=output,
            errors=errors,
            endpoint=endpoint,
            completion_window=completion_window,
            metadata=metadata,
            starts_over=starts_over,
            progress=progress,
        )
        return await self._client._drive(run.steps())
