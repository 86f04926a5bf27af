"""What each dialect takes of the fields that choose tokens: both ends, what is off, and null."""

from __future__ import annotations

from typing import Any

import pytest

from api.schemas.chat import CreateChatCompletion
from api.schemas.completions import CreateCompletion
from api.schemas.jobs import CreateJob
from api.schemas.responses import CreateResponse
from api.schemas.strict import Strict
from api.submitting import parse_body
from tasks.errors import InvalidRequest

_HELLO = [{"role": "user", "content": "hello"}]
BODIES: dict[type[Any], dict[str, Any]] = {
    CreateJob: {"model": "m", "messages": _HELLO},
    CreateChatCompletion: {"model": "m", "messages": _HELLO},
    CreateCompletion: {"model": "m", "prompt": "hello"},
    CreateResponse: {"model": "m", "input": "hello"},
}
ALL = list(BODIES)
CHATS = [CreateJob, CreateChatCompletion]
INT64_MAX = 2**63 - 1


def _sampling(schema: type[Any], fields: dict[str, Any]) -> dict[str, Any]:
    sampling = parse_body(schema, BODIES[schema] | fields).generation().sampling
    return dict(sampling)


@pytest.mark.parametrize("schema", ALL)
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 2}, {"temperature": 2}),
        ({"top_p": 1}, {"top_p": 1}),
        ({"top_p": 0}, {"top_p": 1e-6}),
        ({"top_k": -1}, {}),
        ({"top_k": 0}, {"top_k": 0}),
        ({"top_k": 1}, {"top_k": 1}),
        ({"min_p": 0}, {"min_p": 0}),
        ({"min_p": 1}, {"min_p": 1}),
        ({"presence_penalty": -2}, {"presence_penalty": -2}),
        ({"presence_penalty": 2.0}, {"presence_penalty": 2.0}),
        ({"frequency_penalty": -2.0}, {"frequency_penalty": -2.0}),
        ({"frequency_penalty": 2}, {"frequency_penalty": 2}),
        ({"repetition_penalty": 1}, {"repetition_penalty": 1}),
        ({"logit_bias": {}}, {"logit_bias": {}}),
        ({"logit_bias": {"1": -100, "2": 100}}, {"logit_bias": {"1": -100, "2": 100}}),
        ({"seed": -1}, {}),
        ({"seed": 0}, {"seed": 0}),
        ({"seed": -2}, {"seed": -2}),
        ({"seed": INT64_MAX}, {"seed": INT64_MAX}),
        ({"seed": -INT64_MAX - 1}, {"seed": -INT64_MAX - 1}),
        ({"stop": []}, {"stop": []}),
        ({"stop": "x" * 64}, {"stop": ["x" * 64]}),
        ({"stop": ["a", "b", "c", "d"]}, {"stop": ["a", "b", "c", "d"]}),
        ({"stop_token_ids": []}, {"stop_token_ids": []}),
        ({"min_tokens": 0}, {"min_tokens": 0}),
        ({"ignore_eos": False}, {"ignore_eos": False}),
    ],
)
def test_both_ends_of_a_range_and_what_is_off_are_taken(
    schema: type[Any], fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert _sampling(schema, fields) == expected


@pytest.mark.parametrize("schema", ALL)
@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"top_p": -0.1},
        {"top_p": 1.1},
        {"top_k": -2},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"repetition_penalty": 0},
        {"repetition_penalty": -1},
        {"logit_bias": {"1": 101}},
        {"logit_bias": {"-1": 1}},
        {"seed": INT64_MAX + 1},
        {"seed": -INT64_MAX - 2},
        {"stop": ""},
        {"stop": "x" * 65},
        {"stop_token_ids": [-1]},
        {"min_tokens": -1},
    ],
)
def test_what_is_out_of_range_is_refused_by_its_name(
    schema: type[Any], fields: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _sampling(schema, fields)

    assert str(caught.value.param).split(".")[0] == next(iter(fields))


@pytest.mark.parametrize(
    ("schemas", "fields"),
    [
        (CHATS, {"top_logprobs": 0}),
        (CHATS, {"logprobs": False, "top_logprobs": 0}),
        (CHATS, {"logprobs": True, "top_logprobs": 20}),
        ([*CHATS, CreateCompletion], {"n": 1}),
        ([*CHATS, CreateCompletion], {"n": 8}),
        ([CreateCompletion], {"best_of": 1}),
        ([CreateCompletion], {"suffix": "", "echo": False}),
        ([CreateResponse], {"top_logprobs": 0}),
        ([CreateResponse], {"include": [], "reasoning": {}, "text": {}}),
        ([CreateChatCompletion], {"modalities": [], "functions": [], "function_call": "none"}),
        ([*CHATS, CreateResponse], {"tools": [], "tool_choice": "auto"}),
        ([*CHATS, CreateResponse], {"tools": [], "tool_choice": "none"}),
    ],
)
def test_neutral_values_ask_for_nothing(schemas: list[type[Any]], fields: dict[str, Any]) -> None:
    for schema in schemas:
        assert parse_body(schema, BODIES[schema] | fields).generation() is not None


@pytest.mark.parametrize("schema", [*CHATS, CreateCompletion])
@pytest.mark.parametrize("n", [0, -1, 9])
def test_a_number_of_choices_that_is_none_is_refused(schema: type[Any], n: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _sampling(schema, {"n": n})

    assert caught.value.param == "n"


_NULLS = [
    (schema, name)
    for schema in ALL
    for name, field in schema.model_fields.items()
    if name not in BODIES[schema] and not field.is_required()
]


@pytest.mark.parametrize(("schema", "name"), _NULLS)
def test_null_is_the_default_of_every_optional_field(schema: type[Strict], name: str) -> None:
    plain = parse_body(schema, BODIES[schema])

    given = parse_body(schema, BODIES[schema] | {name: None})

    assert given.model_dump() == plain.model_dump()
