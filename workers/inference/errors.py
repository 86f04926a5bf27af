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

# Every code an engine raises. Those of requests at fault are refused by the API before admission
# where it can know; here they end a job.
_BY_CODE: dict[str, type[ServiceError]] = {
    "context_length_exceeded": ContextLengthExceeded,
    "invalid_grammar": InvalidGrammar,
    "invalid_prompt": InvalidPrompt,
    "invalid_request": InvalidRequest,
    "model_not_found": ModelNotFound,
    "unsupported": UnsupportedParameter,
    "duplicate_request": EngineFailed,
    "engine_error": EngineFailed,
    "engine_unavailable": EngineFailed,
    "engine_unresponsive": EngineFailed,
    "internal": EngineFailed,
    "model_load_failed": EngineFailed,
    "model_unsupported": EngineFailed,
    "out_of_memory": EngineFailed,
}


def to_service_error(error: EngineError) -> ServiceError:
    """The error's class on the wire; a code the table doesn't name is a fault of the engine."""
    return _BY_CODE.get(error.code, EngineFailed)(error.message)
