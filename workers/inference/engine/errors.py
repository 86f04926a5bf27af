"""Why an engine refuses or fails a request. The worker maps these to ServiceError by `code`."""

from __future__ import annotations

import re

_MAX_REASON = 300  # characters
# An absolute path of this machine: what is read by tenants names the file alone.
_FOLDERS = re.compile(r"(?<![\w./:-])~?/(?:[^\s/'\":;,]+/)*")


class EngineError(Exception):
    """A request the engine can't serve. `code` is stable; `retryable`: may another try work?"""

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable


def is_device_lost(error: Exception) -> bool:
    """An illegal access, for one: nothing can be computed in this process any more."""
    return any(kind.__name__ == "AcceleratorError" for kind in type(error).__mro__)


def reason_of(error: Exception) -> str:
    """Why a model can't be served, as one short line that anybody may read."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = _FOLDERS.sub("", text)
    return text if len(text) <= _MAX_REASON else text[: _MAX_REASON - 1] + "…"
