"""The engine's errors in the platform's words."""

from __future__ import annotations

from tasks.errors import (
    ContextLengthExceeded,
    EngineFailed,
    InvalidGrammar,
    InvalidPrompt,
    InvalidRequest,
    ModelNotFound,
    ServiceError,
    UnsupportedParameter,
)
from workers.inference.engine.errors import EngineError

_BY_CODE: dict[str, type[ServiceError]] = {
    "model_not_found": ModelNotFound,
    "invalid_grammar": InvalidGrammar,
    "invalid_prompt": InvalidPrompt,
    "context_length_exceeded": ContextLengthExceeded,
    "invalid_request": InvalidRequest,
    "unsupported": UnsupportedParameter,
}


def to_service_error(error: EngineError) -> ServiceError:
    """The error's class on the wire; anything the table doesn't name is a fault of the engine."""
    return _BY_CODE.get(error.code, EngineFailed)(error.message)
