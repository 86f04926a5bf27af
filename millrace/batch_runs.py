"""A batch from a file of requests to files of results, which can be interrupted anywhere and run
again: it takes up the batch it has, and writes each result once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from millrace import calls
from millrace.batch_files import ResultsFile, RunState, fingerprint
from millrace.errors import (
    APIConnectionError,
    MillraceError,
    RangeNotSatisfiableError,
    ServerError,
)
from millrace.retries import backoff
from millrace.steps import Fetch, Pause, Step, Steps
from millrace.types import Batch, Page

FIRST_POLL_S = 0.5
PAGE = 100  # batches at a time, among which a lost one is looked for
MAX_POLL_S = 10.0
# A server that is away for less is waited for: the batch goes on without us.
PATIENCE_S = 600.0


@dataclass(frozen=True)
class BatchProgress:
    """How far a run is: bytes while it uploads, then the batch and the results written."""

    bytes_sent: int
    bytes_total: int
    batch: Batch | None = None
    num_results: int = 0
    num_errors: int = 0


OnProgress = Callable[[BatchProgress], None]


@dataclass(frozen=True)
class BatchRun:
    """What to run, and where its results go."""

    path: Path
    endpoint: str
    completion_window: str
    output: Path
    errors: Path
    metadata: Mapping[str, str] | None = None
    starts_over: bool = False
    progress: OnProgress | None = None

    @classmethod
    def of(
        cls,
        path: str | Path,
        *,
        output: str | Path | None,
        errors: str | Path | None,
        **options: Any,
    ) -> BatchRun:
        """With results beside the input: FILE.out.jsonl and FILE.err.jsonl."""
        return cls(
            path=Path(path),
            output=Path(output or f"{path}.out.jsonl"),
            errors=Path(errors or f"{path}.err.jsonl"),
            **options,
        )

    @property
    def state_path(self) -> Path:
        """Remembers the batch."""
        return self.path.with_name(f"{self.path.name}.millrace.json")

    def steps(self) -> Steps[Batch]:
        """Upload, create, wait; or what of it an earlier run left to do. Ends with the batch."""
        asked = fingerprint(self.path, self.endpoint, self.completion_window)
        self._check_folders()
        state = None if self.starts_over else RunState.read(self.state_path)
        if state is None or state.fingerprint != asked:
            self._check_results()
            state = yield from self._upload(asked)
        if state.batch_id is None:
            state = yield from self._create(state)
        batch = yield from self._wait(str(state.batch_id))
        if batch.status == "failed":  # refused as a whole: there is nothing to take up
            self.state_path.unlink(missing_ok=True)
        return batch

    def _check_folders(self) -> None:
        """Before anything is paid for."""
        for path in (self.output, self.errors):
            if not path.parent.is_dir():
                raise MillraceError(f"There is no folder {path.parent} to write results to.")

    def _check_results(self) -> None:
        """Results of another run were paid for: nothing but the user's word deletes them."""
        for path in (self.output, self.errors):
            if not self.starts_over and path.exists() and path.stat().st_size:
                raise MillraceError(f"{path} holds results of another run: move it, or start over")

    def _clear_results(self) -> None:
        """Those of another run, once there is a batch to give new ones."""
        self._check_results()
        for path in (self.output, self.errors):
            path.unlink(missing_ok=True)

    def _upload(self, asked: str) -> Steps[RunState]:
        call = calls.upload_file(
            self.path, purpose="batch", filename=None, expires_after_s=None, progress=self._sent
        )
        file = yield call
        state = RunState(asked, file.id, uploaded_at=file.created_at)
        state.write(self.state_path)
        return state

    def _create(self, state: RunState) -> Steps[RunState]:
        batch = yield from _created_over(state)
        if batch is None:
            batch = yield calls.create_batch(
                state.file_id,
                endpoint=self.endpoint,
                completion_window=self.completion_window,
                metadata=self.metadata,
            )
        self._clear_results()
        state = replace(state, batch_id=batch.id)
        state.write(self.state_path)
        return state

    def _wait(self, batch_id: str) -> Steps[Batch]:
        with _results(self.output) as output, _results(self.errors) as errors:
            follower = _Follower(batch_id, output, errors)
            while True:
                batch = yield from follower.look()
                self._tell(batch, output, errors)
                if (yield from follower.read(batch)):
                    self._tell(batch, output, errors)
                if batch.is_terminal:
                    return batch
                yield Pause(follower.delay_s)

    def _sent(self, sent: int, total: int) -> None:
        if self.progress:
            self.progress(BatchProgress(sent, total))

    def _tell(self, batch: Batch, output: ResultsFile, errors: ResultsFile) -> None:
        if self.progress:
            size = self.path.stat().st_size
            lines = (output.num_lines, errors.num_lines)
            self.progress(BatchProgress(size, size, batch, *lines))


class _Follower:
    """Looks at a batch again and again, and reads what is new in its files."""

    def __init__(self, batch_id: str, output: ResultsFile, errors: ResultsFile) -> None:
        self._call = calls.get_batch(batch_id)
        self._output = output
        self._errors = errors
        self._num_ended = -1  # lines at the last reading
        self.delay_s = FIRST_POLL_S

    def look(self) -> Steps[Batch]:
        """The batch as it is."""
        batch: Batch = yield from _patiently(self._call)
        return batch

    def read(self, batch: Batch) -> Steps[bool]:
        """What its files have now, to their ends if it is over. False if there was nothing new."""
        if not batch.is_terminal and batch.request_counts.ended == self._num_ended:
            self.delay_s = min(self.delay_s * 1.5, MAX_POLL_S)
            return False
        for file_id, results in (
            (batch.output_file_id, self._output),
            (batch.error_file_id, self._errors),
        ):
            if file_id is not None:
                with suppress(RangeNotSatisfiableError):  # nothing new in this one
                    yield from _patiently(Fetch(calls.file_content(file_id), results))
            if batch.is_terminal:
                results.finish()
        self._num_ended = batch.request_counts.ended
        self.delay_s = FIRST_POLL_S
        return True


def _created_over(state: RunState) -> Steps[Batch | None]:
    """The batch of a creation whose answer was lost, however many were made since the upload."""
    after: str | None = None
    while True:
        page: Page[Batch] = yield calls.list_batches(after=after, limit=PAGE)
        for batch in page.data:
            if batch.input_file_id == state.file_id:
                return batch
        if not page.has_more or page.data[-1].created_at < state.uploaded_at:
            return None
        after = page.last_id


def _patiently(step: Step) -> Steps[Any]:
    """Through a server that restarts. What it refuses is raised at once."""
    give_up_at = time.monotonic() + PATIENCE_S
    attempt = 0
    while True:
        try:
            return (yield step)
        except (APIConnectionError, ServerError):
            if time.monotonic() > give_up_at:
                raise
        yield Pause(backoff(attempt))
        attempt += 1


@contextmanager
def _results(path: Path) -> Iterator[ResultsFile]:
    results = ResultsFile(path)
    try:
        yield results
    finally:
        results.close()
