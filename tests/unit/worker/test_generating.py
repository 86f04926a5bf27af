"""What is asked of the engine for a job, and taken back, without an engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tasks.ids import uuid7
from tests.unit.worker.test_job_stream import new_stream, output
from workers.inference import run_job
from workers.inference.engine.errors import EngineError
from workers.inference.engine.protocol import FinishReason
from workers.inference.runtime import RunningJob, Runtime


class _Runtime:
    """Ends choices as it is told to, as soon as the job is submitted."""

    def __init__(self, *ends: FinishReason) -> None:
        self._ends = ends
        self.aborted: list[RunningJob] = []
        self.publisher = SimpleNamespace(register=self._register, flush=lambda _: None)
        self.engine = SimpleNamespace(submit=self._submit)

    def _register(self, request_id: str, stream: Any) -> None:
        self._stream = stream

    def _submit(self, request: Any) -> None:
        for index, reason in enumerate(self._ends):
            is_error = reason is FinishReason.ERROR
            error = EngineError("internal", "x", retryable=False) if is_error else None
            self._stream.add_output(output("a", 1, index=index, reason=reason, error=error))
        self._stream.finished.set()

    def abort(self, job: RunningJob) -> None:
        self.aborted.append(job)


@pytest.mark.parametrize(
    ("ends", "is_aborted"),
    [
        ((FinishReason.STOP, FinishReason.LENGTH), False),
        ((FinishReason.ERROR,), True),  # the other choice goes on in the engine
    ],
)
def test_choices_that_the_engine_still_generates_are_taken_back(
    ends: tuple[FinishReason, ...], is_aborted: bool
) -> None:
    runtime = _Runtime(*ends)
    job = RunningJob(new_stream(num_choices=2), uuid7())

    run_job._generate(cast(Runtime, runtime), job)

    assert runtime.aborted == ([job] if is_aborted else [])
