"""What of a request is stored: the fields that its schema knows, as they were sent."""

from __future__ import annotations

from typing import Any

import pytest

from api.schemas.chat import CreateChatCompletion
from api.schemas.completions import CreateCompletion
from api.schemas.jobs import CreateJob
from api.schemas.responses import CreateResponse
from api.schemas.strict import Strict, known_fields

_JUNK = {"junk": "x" * 1_000}
_SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "x-own": 1}

_KNOWN: list[tuple[type[Strict], dict[str, Any]]] = [
    (CreateJob, {"model": "m", "prompt": "p", "metadata": {"any": "thing"}}),
    (CreateCompletion, {"model": "m", "prompt": ["p"], "logit_bias": {"5": 1.0}}),
    (
        CreateChatCompletion,
        {
            "model": "m",
            "messages": [{"role": "user", "content": "p"}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": _SCHEMA},
            },
        },
    ),
    (
        CreateResponse,
        {
            "model": "m",
            "input": "p",
            "tools": [{"type": "function", "name": "f", "parameters": _SCHEMA}],
            "text": {"format": {"type": "json_schema", "name": "n", "schema": _SCHEMA}},
        },
    ),
]


@pytest.mark.parametrize(("model", "body"), _KNOWN)
def test_what_a_schema_knows_is_kept_as_it_was_sent(
    model: type[Strict], body: dict[str, Any]
) -> None:
    assert known_fields(model, body | _JUNK) == body


def test_unknown_fields_are_dropped_at_any_depth() -> None:
    part = {"type": "text", "text": "p"}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    tool = {"type": "function", "function": {"name": "f"}}
    message = {"role": "assistant", "content": [part], "tool_calls": [call]}
    body = {"model": "m", "messages": [message], "tools": [tool], "stream_options": {}}
    noisy = {
        "model": "m",
        "messages": [
            message
            | _JUNK
            | {
                "content": [part | _JUNK],
                "tool_calls": [call | _JUNK | {"function": call["function"] | _JUNK}],  # type: ignore[operator]
            }
        ],
        "tools": [tool | _JUNK | {"function": tool["function"] | _JUNK}],  # type: ignore[operator]
        "stream_options": _JUNK,
    }

    assert known_fields(CreateChatCompletion, noisy) == body
