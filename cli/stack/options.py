"""What `millrace up` was asked to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """port=None: 8000 or the next free one. model=None: the demo models alone."""

    port: int | None = None
    model: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    engine: str = "millrace"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> UpOptions:
        return cls(**json.loads(text))


class Step(StrEnum):
    """What a line of progress means."""

    BEGIN = "begin"  # something that takes a while began
    DONE = "done"  # it is done
    NOTE = "note"  # worth knowing, nothing to do
    READY = "ready"  # all is up
    ERROR = "error"  # the one line that says what to do


Report = Callable[[Step, str], None]
