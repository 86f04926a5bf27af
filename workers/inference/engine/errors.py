"""Why an engine refuses or fails a request. The worker maps these to ServiceError by `code`."""

from __future__ import annotations


class EngineError(Exception):
    """A request the engine can't serve. `code` is stable; `retryable`: may another try work?"""

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
