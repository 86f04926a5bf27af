"""A sink that remembers everything and lets tests wait for conditions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from workers.inference.engine.protocol import FinishReason, TokenOutput

TIMEOUT_S = 30.0


class Collector:
    """Callable as a StepSink. `hook`, if set, runs on the device thread after each step."""

    def __init__(self) -> None:
        self.steps: list[list[TokenOutput]] = []
        self.hook: Callable[[Sequence[TokenOutput]], None] | None = None
        self._changed = threading.Condition()

    def __call__(self, outputs: Sequence[TokenOutput]) -> None:
        with self._changed:
            self.steps.append(list(outputs))
            self._changed.notify_all()
        if self.hook is not None:
            self.hook(outputs)

    def wait_for(self, is_true: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(is_true, TIMEOUT_S), "the condition never came true"

    def wait_finished(self, *request_ids: str, n: int = 1) -> None:
        """Wait until all of n choices of each request have ended."""
        self.wait_for(lambda: all(len(self.terminals(r)) >= n for r in request_ids))

    def outputs(self, request_id: str, index: int | None = None) -> list[TokenOutput]:
        """Of one choice, or of all of a request's."""
        found = [o for step in self.steps for o in step if o.request_id == request_id]
        return [output for output in found if index in (None, output.index)]

    def terminals(self, request_id: str, index: int | None = None) -> list[TokenOutput]:
        return [o for o in self.outputs(request_id, index) if o.finish_reason is not None]

    def reason(self, request_id: str) -> FinishReason | None:
        (terminal,) = self.terminals(request_id)
        return terminal.finish_reason

    def text(self, request_id: str, index: int | None = None) -> str:
        return "".join(output.text for output in self.outputs(request_id, index))

    def tokens(self, request_id: str, index: int | None = None) -> list[int]:
        return [t for output in self.outputs(request_id, index) for t in output.token_ids]
