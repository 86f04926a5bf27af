"""Which field an error names where a rule looks at several, in every dialect the same."""

from __future__ import annotations

from typing import Any

import pytest

from api.schemas.chat import CreateChatCompletion
from api.schemas.completions import CreateCompletion
from api.schemas.jobs import CreateJob
from api.schemas.responses import CountInput, CreateResponse
from api.schemas.strict import Strict
from api.submitting import parse_body
from tasks.errors import InvalidRequest, UnsupportedParameter

_HELLO = [{"role": "user", "content": "hello"}]
_BODIES: dict[type[Strict], dict[str, Any]] = {
    CreateJob: {"model": "m", "messages": _HELLO},
    CreateChatCompletion: {"model": "m", "messages": _HELLO},
    CreateCompletion: {"model": "m", "prompt": "hello"},
    CreateResponse: {"model": "m", "input": "hello"},
}
_NESTED = {"type": "function", "function": {"name": "f"}}
_FLAT = {"type": "function", "name": "f"}
_SEARCH = {"type": "web_search"}
_CHATS = (CreateJob, CreateChatCompletion)
_WAITING = (CreateChatCompletion, CreateCompletion, CreateResponse)
_TOOLS = [*_CHATS, CreateResponse]


def _refusal(schema: type[Strict], fields: dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_body(schema, _BODIES.get(schema, {}) | fields).generation()  # type: ignore[attr-defined]
    return caught.value


def _function(schema: type[Strict]) -> dict[str, Any]:
    return _FLAT if schema is CreateResponse else _NESTED


@pytest.mark.parametrize(
    ("schemas", "fields", "param"),
    [
        (_TOOLS, {"tool_choice": "required"}, "tool_choice"),
        (_TOOLS, {"tool_choice": _FLAT}, "tool_choice"),
        (_TOOLS, {"tool_choice": _NESTED, "tools": []}, "tool_choice"),
        (_WAITING, {"stream_options": {"include_usage": True}}, "stream_options"),
        (_CHATS, {"top_logprobs": 2}, "top_logprobs"),
        (_CHATS, {"top_logprobs": 2, "logprobs": False}, "top_logprobs"),
        (_CHATS, {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        (_CHATS, {"messages": [{"role": "user"}]}, "messages.0.content"),
        (
            _CHATS,
            {
                "messages": [
                    {
                        "role": "user",
                        "content": "x",
                        "tool_calls": [
                            {"id": "c", "function": {"name": "f", "arguments": "{}"}},
                        ],
                    }
                ]
            },
            "messages.0.tool_calls",
        ),
        (_CHATS, {"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ([CreateJob], {"messages": None}, "messages"),
        ([CreateJob], {"prompt": "x"}, "prompt"),
        ([CreateJob], {"messages": None, "prompt": "x", "tools": [_NESTED]}, "tools"),
        ([CreateResponse], {"background": True, "store": False}, "background"),
        ([CreateResponse], {"top_logprobs": 1, "tools": [_FLAT]}, "top_logprobs"),
        (
            [CreateResponse],
            {"include": ["message.output_text.logprobs"], "tools": [_FLAT]},
            "include",
        ),
        ([CreateResponse], {"text": {"format": {"type": "json_schema"}}}, "text.format.name"),
        ([CreateResponse], {"input": [{"role": "user"}]}, "input.0.content"),
        ([CreateResponse], {"input": [{"type": "item_reference"}]}, "input.0.id"),
        (
            [CreateResponse],
            {"input": [{"type": "function_call_output", "call_id": "c"}]},
            "input.0.output",
        ),
        ([CreateResponse], {"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ([CountInput], {}, "input"),
    ],
)
def test_a_rule_between_fields_names_the_one_to_mend(
    schemas: list[type[Strict]], fields: dict[str, Any], param: str
) -> None:
    refusals = [_refusal(schema, fields) for schema in schemas]

    assert [refusal.param for refusal in refusals] == [param] * len(schemas)
    assert len({refusal.message for refusal in refusals}) == 1


@pytest.mark.parametrize(
    ("schema", "param"),
    [(CreateJob, "max_completion_tokens"), (CreateChatCompletion, "max_tokens")],
)
def test_of_two_limits_the_one_that_is_too_much_is_named(schema: type[Strict], param: str) -> None:
    refusal = _refusal(schema, {"max_tokens": 5, "max_completion_tokens": 5})

    assert refusal.param == param


@pytest.mark.parametrize("schema", _TOOLS)
@pytest.mark.parametrize(
    "choice",
    [
        "bogus",
        "",
        7,
        {},
        {"type": 7},
        {"type": "function"},
        {"type": "function", "function": {"name": 7}},
        {"type": "function", "name": "other", "function": {"name": "other"}},
        {"type": "allowed_tools"},
        {"type": "allowed_tools", "mode": "bogus", "tools": [_FLAT]},
        {"type": "allowed_tools", "mode": "auto", "tools": []},
        {"type": "allowed_tools", "mode": "auto", "tools": [7]},
    ],
)
def test_a_bogus_choice_names_no_field_that_nobody_sent(schema: type[Strict], choice: Any) -> None:
    refusal = _refusal(schema, {"tools": [_function(schema)], "tool_choice": choice})

    assert (refusal.code, refusal.param) == ("invalid_request", "tool_choice")
    assert "mode'" not in refusal.message
    assert "names." not in refusal.message


@pytest.mark.parametrize("schema", _TOOLS)
@pytest.mark.parametrize(
    "choice",
    [_SEARCH, {"type": "allowed_tools", "mode": "required", "tools": [_SEARCH]}],
)
def test_a_choice_of_what_is_no_function_is_unsupported(schema: type[Strict], choice: Any) -> None:
    refusal = _refusal(schema, {"tools": [_function(schema)], "tool_choice": choice})

    assert isinstance(refusal, UnsupportedParameter)
    assert refusal.param == "tool_choice"


@pytest.mark.parametrize("schema", [CreateChatCompletion, CreateResponse])
def test_a_call_that_only_skipped_tools_could_answer_is_unsupported(schema: type[Strict]) -> None:
    refusal = _refusal(schema, {"tools": [_SEARCH], "tool_choice": "required"})

    assert isinstance(refusal, UnsupportedParameter)
    assert refusal.param == "tool_choice"


@pytest.mark.parametrize("schema", _TOOLS)
def test_the_second_tool_of_a_name_is_named(schema: type[Strict]) -> None:
    tool = _function(schema)

    refusal = _refusal(schema, {"tools": [tool, {**tool}]})

    assert refusal.param == "tools.1"


def test_a_job_takes_no_tool_that_would_be_left_out() -> None:
    refusal = _refusal(CreateJob, {"tools": [_NESTED, _SEARCH]})

    assert (refusal.code, refusal.param) == ("unsupported_parameter", "tools.1.type")


@pytest.mark.parametrize("schema", _TOOLS)
def test_a_message_names_no_class_of_ours(schema: type[Strict]) -> None:
    for fields in ({"tools": [7]}, {"tools": [None]}, {"messages": [7], "input": [7]}):
        assert "instance of" not in _refusal(schema, fields).message
