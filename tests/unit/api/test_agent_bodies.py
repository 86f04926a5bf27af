"""Bodies in the shapes that agents send, unconfigured but for address, key and model.

Each is taken, and what of it has no effect on a text model is named.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from api.schemas.chat import CreateChatCompletion
from api.schemas.responses import CreateResponse
from api.submitting import read_asked
from store.tenants import ApiKey
from tasks.limits import NO_LIMITS

_PARAMETERS = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
_FLAT = {"type": "function", "name": "get_weather", "parameters": _PARAMETERS}
_NESTED = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather.", "parameters": _PARAMETERS},
}
_CALL = {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": "{}"}
_OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": '{"degrees": 21}'}
_REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}


def _parts(text: str) -> list[dict[str, Any]]:
    return [{"type": "input_text", "text": text}]


_CODEX = {
    "stream": True,
    "input": [
        {"type": "message", "id": "msg_1-a", "role": "developer", "content": _parts("You code.")},
        {"type": "message", "id": "msg_2-b", "role": "user", "content": _parts("<context/>")},
        {"type": "message", "id": "msg_3-c", "role": "user", "content": _parts("say hi")},
    ],
    "tools": [
        {**_FLAT, "strict": False, "description": "Runs a command."},
        {"type": "namespace", "name": "agents", "description": "More.", "tools": [_FLAT]},
        {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "lark"}},
        {"type": "web_search", "external_web_access": False},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "01a2290c-54fb-7ad1-a342-7813f830baf4",
    "client_metadata": {"session_id": "1"},
}
_CODEX_IGNORES = {
    *("client_metadata", "include.reasoning.encrypted_content", "prompt_cache_key", "reasoning"),
    *("tools.custom", "tools.namespace", "tools.web_search"),
}
_CODEX_SCHEMA = {
    "verbosity": "low",
    "format": {
        "type": "json_schema",
        "strict": True,
        "name": "codex_output_schema",
        "schema": _PARAMETERS,
    },
}
_CODEX_HISTORY = [
    _REASONING,
    {**_CALL, "id": "fc_1"},
    _OUTPUT,
    {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": "x"},
    {"type": "custom_tool_call_output", "call_id": "c2", "output": "done"},
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}},
    {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "hi", "annotations": []}],
        "phase": "final_answer",
    },
]

RESPONSES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "Codex": (_CODEX, _CODEX_IGNORES),
    "Codex with an output schema": (
        {**_CODEX, "text": _CODEX_SCHEMA, "service_tier": "priority"},
        {*_CODEX_IGNORES, "text.verbosity"},
    ),
    "Codex going on": (
        {
            **_CODEX,
            "input": [*_CODEX["input"], *_CODEX_HISTORY],  # type: ignore[misc]
            "reasoning": {"effort": "high", "summary": "auto", "context": "all"},
        },
        {
            *_CODEX_IGNORES,
            *("input.custom_tool_call", "input.custom_tool_call_output"),
            *("input.reasoning", "input.web_search_call", "reasoning.context"),
            *("input.9.content.0.annotations", "input.9.phase"),
        },
    ),
    "Vercel AI SDK, second turn": (
        {
            "input": [
                {"role": "user", "content": _parts("What is the weather?")},
                _CALL,
                _OUTPUT,
                {"type": "item_reference", "id": "msg_" + "0" * 34},
                {"role": "user", "content": _parts("And now?")},
            ],
            "max_output_tokens": 20,
            "tools": [{**_FLAT, "strict": False}],
            "tool_choice": "auto",
            "stream": True,
        },
        set(),
    ),
    "OpenAI Agents SDK": (
        {
            "input": [
                {"role": "user", "content": "What is the weather?"},
                {**_CALL, "id": "fc_1", "status": "completed"},
                _OUTPUT,
            ],
            "instructions": "Be brief.",
            "tools": [{**_FLAT, "strict": True}, {"type": "web_search_preview"}],
            "include": [],
            "parallel_tool_calls": None,
            "previous_response_id": None,
            "conversation": None,
            "reasoning": None,
            "text": None,
            "truncation": None,
            "metadata": None,
            "store": None,
            "top_logprobs": None,
            "prompt": None,
            "stream": False,
        },
        {"input.1.status", "tools.web_search_preview"},
    ),
    "pydantic-ai": (
        {
            "input": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What is the weather?"},
                _REASONING,
                _CALL,
                _OUTPUT,
            ],
            "tools": [{**_FLAT, "description": None, "strict": False}],
            "tool_choice": "auto",
            "include": ["reasoning.encrypted_content"],
            "reasoning": {"effort": "medium", "summary": "detailed"},
            "text": {"verbosity": "high"},
            "user": None,
        },
        {
            *("include.reasoning.encrypted_content", "input.reasoning", "reasoning"),
            "text.verbosity",
        },
    ),
}

_CALLING = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    ],
}
_TOLD = {"role": "tool", "tool_call_id": "call_1", "content": "21"}
_ASKING = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather?"}]

CHATS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "LangChain": (
        {
            "messages": [*_ASKING, {**_CALLING, "refusal": None, "name": None}, _TOLD],
            "tools": [{**_NESTED, "function": {**_NESTED["function"], "strict": None}}],  # type: ignore[dict-item]
            "tool_choice": None,
            "temperature": None,
            "n": None,
            "stop": None,
            "stream": False,
        },
        set(),
    ),
    "Vercel AI SDK": (
        {
            "messages": [*_ASKING, {**_CALLING, "content": ""}, _TOLD],
            "tools": [_NESTED],
            "tool_choice": "auto",
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        set(),
    ),
    "opencode": (
        {
            "messages": [*_ASKING, _CALLING, _TOLD],
            "max_tokens": 100,
            "temperature": 0,
            "top_p": 1,
            "tools": [_NESTED],
            "tool_choice": "auto",
            "stream": True,
            "stream_options": {"include_usage": True},
            "reasoning_effort": "medium",
            "verbosity": "low",
        },
        {"reasoning_effort", "verbosity"},
    ),
    "Cline": (
        {
            "messages": [
                {"role": "system", "content": "You code."},
                {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "hello"}]},
                {"role": "user", "content": [{"type": "text", "text": "again"}]},
            ],
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "reasoning_effort": "high",
        },
        {"reasoning_effort"},
    ),
    "Continue": (
        {
            "messages": _ASKING,
            "max_tokens": 100,
            "stop": [],
            "stream": True,
            "tools": [_NESTED],
            "prediction": {"type": "content", "content": "x"},
            "parallel_tool_calls": False,
        },
        {"prediction"},
    ),
    "aider": (
        {
            "messages": [*_ASKING, {"role": "assistant", "content": "ok"}, _ASKING[1]],
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        set(),
    ),
    "goose": (
        {
            "messages": [*_ASKING, {**_CALLING, "content": ""}, _TOLD],
            "tools": [_NESTED],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.0,
            "max_tokens": 100,
        },
        set(),
    ),
    "a custom tool": (
        {"messages": _ASKING, "tools": [_NESTED, {"type": "custom", "custom": {"name": "p"}}]},
        {"tools.custom"},
    ),
}


_CALLER = ApiKey(
    key_id="k",
    hash=b"",
    pepper_version=1,
    scopes=frozenset(),
    is_live=True,
    tenant_id=UUID(int=1),
    tiers=("default",),
    default_tier="default",
    on_disconnect=None,
    attach_retries=True,
    limits=NO_LIMITS,
)


def _ignored(schema: type[Any], body: dict[str, Any]) -> set[str]:
    asked = read_asked(schema, _CALLER, {"model": "m", **body})
    return set(asked.ignored.split(", ")) if asked.ignored else set()


@pytest.mark.parametrize("client", RESPONSES)
def test_a_responses_body_is_taken(client: str) -> None:
    body, ignored = RESPONSES[client]

    assert _ignored(CreateResponse, body) == ignored


@pytest.mark.parametrize("client", CHATS)
def test_a_chat_body_is_taken(client: str) -> None:
    body, ignored = CHATS[client]

    assert _ignored(CreateChatCompletion, body) == ignored
