"""The requests an engine has accepted and not ended: how they come in, and which must leave.

Thread-safe. A request has one Request object for each of its choices; its id is free again when
the last of them has ended.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence

from workers.inference.engine.errors import EngineError
from workers.inference.engine.protocol import FinishReason, TokenOutput
from workers.inference.engine.request import Request

# Choices that joined, and choices that have to leave, with the reason. One may be named twice.
Changes = tuple[list[Request], list[tuple[Request, FinishReason]]]


class Roster:
    """Submitting threads add and abort, the device thread looks for changes between steps."""

    def __init__(self) -> None:
        self._wake = threading.Condition()  # guards everything; the idle device thread waits on it
        self._choices: dict[str, dict[int, Request]] = {}  # by request id and index
        self._joined: list[Request] = []
        self._aborted: set[str] = set()
        self._next_deadline = math.inf  # no request has an earlier one
        self._is_closed = False

    @property
    def is_empty(self) -> bool:
        return not self._choices

    @property
    def num_choices(self) -> int:
        """Generations that wait or run."""
        with self._wake:
            return sum(len(choices) for choices in self._choices.values())

    def add(self, choices: Sequence[Request]) -> None:
        """Accept all choices of one request, or raise EngineError."""
        request_id, deadline = choices[0].request_id, choices[0].deadline
        with self._wake:
            if self._is_closed:
                raise not_serving()
            if request_id in self._choices:
                raise EngineError("duplicate_request", f"{request_id} is running already")
            self._choices[request_id] = {choice.index: choice for choice in choices}
            self._joined += choices
            if deadline is not None:
                self._next_deadline = min(self._next_deadline, deadline)
            self._wake.notify()

    def abort(self, request_id: str) -> None:
        """Let the request leave. Unknown ids are ignored."""
        with self._wake:
            if request_id in self._choices:
                self._aborted.add(request_id)

    def close(self) -> None:
        """Accept nothing more, and end the wait."""
        with self._wake:
            self._is_closed = True
            self._wake.notify()

    def wait(self) -> bool:
        """Block while there is nothing to do. False once closed."""
        with self._wake:
            self._wake.wait_for(lambda: self._is_closed or self._choices)
            return not self._is_closed

    def changes(self, now: float) -> Changes:
        """Who joined since the last call. One snapshot: no abort overtakes its own submit.

        Who has to leave is told again until it is forgotten, so that a fault in between loses none.
        """
        with self._wake:
            joined, self._joined = self._joined, []
            return joined, [*self._leave_aborted(), *self._leave_late(now)]

    def remaining(self) -> list[Request]:
        """All there are, in order of arrival; none of them joins again."""
        with self._wake:
            self._joined = []
            return [c for choices in self._choices.values() for c in choices.values()]

    def forget(self, outputs: Iterable[TokenOutput]) -> None:
        """Let go of the choices that these outputs end."""
        ended = [output for output in outputs if output.finish_reason is not None]
        if not ended:
            return
        with self._wake:
            for output in ended:
                choices = self._choices.get(output.request_id, {})
                choices.pop(output.index, None)
                if not choices:
                    self._choices.pop(output.request_id, None)
                    self._aborted.discard(output.request_id)

    def _leave_aborted(self) -> list[tuple[Request, FinishReason]]:
        return [
            (choice, FinishReason.ABORT)
            for request_id in self._aborted
            for choice in self._choices[request_id].values()
        ]

    def _leave_late(self, now: float) -> list[tuple[Request, FinishReason]]:
        """All requests are looked at only when the earliest deadline has passed."""
        if now < self._next_deadline:
            return []
        dated = [
            (choice.deadline, choice)
            for choices in self._choices.values()
            for choice in choices.values()
            if choice.deadline is not None
        ]
        self._next_deadline = min((deadline for deadline, _ in dated), default=math.inf)
        return [(choice, FinishReason.DEADLINE) for deadline, choice in dated if deadline <= now]


def not_serving() -> EngineError:
    """For a submit that comes too early or too late."""
    return EngineError("engine_unavailable", "the engine is not serving", retryable=True)
