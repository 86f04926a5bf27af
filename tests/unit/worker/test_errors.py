"""The engine's errors in the platform's words."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

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
from workers.inference import errors
from workers.inference.engine.errors import EngineError
from workers.inference.errors import to_service_error

WORKER = Path(errors.__file__).parent


def raised_codes() -> set[str]:
    """The first argument of every EngineError that is built in the worker and its engine."""
    calls = [
        node
        for path in WORKER.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "EngineError"
    ]
    codes = [call.args[0] for call in calls if call.args]
    return {str(code.value) for code in codes if isinstance(code, ast.Constant)}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("context_length_exceeded", ContextLengthExceeded),
        ("invalid_grammar", InvalidGrammar),
        ("invalid_prompt", InvalidPrompt),
        ("invalid_request", InvalidRequest),
        ("model_not_found", ModelNotFound),
        ("unsupported", UnsupportedParameter),
        ("out_of_memory", EngineFailed),
        ("a code of tomorrow", EngineFailed),
    ],
)
def test_code_becomes_the_class_of_that_name(code: str, expected: type[ServiceError]) -> None:
    error = to_service_error(EngineError(code, "the reason"))

    assert type(error) is expected
    assert error.message == "the reason"


def test_every_code_an_engine_raises_stands_in_the_table() -> None:
    assert raised_codes() >= {"invalid_grammar", "out_of_memory", "context_length_exceeded"}

    assert raised_codes() == set(errors._BY_CODE)
