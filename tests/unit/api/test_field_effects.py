"""No field of a body is taken and without effect, unless the client is told so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import ValidationError

from api.admission import _grammar_of
from api.schemas.chat import CreateChatCompletion
from api.schemas.completions import CreateCompletion
from api.schemas.jobs import CreateJob
from api.schemas.responses import CreateResponse
from api.schemas.strict import Strict, ignored_fields
from api.submitting import without_effect
from api.tools.formats import format_named
from tasks.errors import ServiceError, UnsupportedParameter

MESSAGES = [{"role": "user", "content": "hi"}]
CALL = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
BODIES: dict[type[Strict], dict[str, Any]] = {
    CreateChatCompletion: {"model": "m", "messages": MESSAGES},
    CreateCompletion: {"model": "m", "prompt": "hi"},
    CreateResponse: {"model": "m", "input": "hi"},
    CreateJob: {"model": "m", "messages": MESSAGES},
}
# One value of each field that asks for something, and what it needs beside it.
VALUES: dict[str, Any] = {
    "audio": {"voice": "x"},
    "background": True,
    "best_of": 2,
    "conversation": "c",
    "deadline_s": 5.0,
    "frequency_penalty": 0.5,
    "function_call": {"name": "f"},
    "functions": [{}],
    "guided_choice": ["a"],
    "guided_grammar": 'start: "a"',
    "guided_json": SCHEMA,
    "guided_regex": "a",
    "ignore_eos": True,
    "include": ["message.output_text.logprobs"],
    "input": "other",
    "instructions": "be brief",
    "logit_bias": {"1": 1.0},
    "max_completion_tokens": 5,
    "max_output_tokens": 5,
    "max_tokens": 5,
    "max_tool_calls": 1,
    "messages": [{"role": "user", "content": "other"}],
    "metadata": {"a": "b"},
    "min_p": 0.5,
    "min_tokens": 2,
    "modalities": ["audio"],
    "model": "other",
    "n": 2,
    "on_disconnect": "continue",
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": 0.5,
    "prompt_cache_key": "k",
    "reasoning": {"effort": "high"},
    "reasoning_effort": "high",
    "repetition_penalty": 1.5,
    "response_format": {"type": "json_object"},
    "safety_identifier": "u",
    "seed": 3,
    "service_tier": "flex",
    "stop": ["x"],
    "stop_token_ids": [4],
    "store": False,
    "structured_outputs": {"regex": "a"},
    "suffix": "x",
    "temperature": 0.5,
    "text": {"format": {"type": "json_object"}},
    "tools": [CALL],
    "top_k": 4,
    "top_p": 0.5,
    "truncation": "auto",
    "user": "u",
    "verbosity": "high",
    "web_search_options": {},
}
OF_ONE: dict[tuple[type[Strict], str], Any] = {
    (CreateChatCompletion, "logprobs"): True,
    (CreateJob, "logprobs"): True,
    (CreateCompletion, "logprobs"): 2,
    (CreateCompletion, "prompt"): "other",
    (CreateJob, "prompt"): "other",
    (CreateResponse, "prompt"): {"id": "p"},
    (CreateResponse, "tools"): [{"type": "function", "name": "f"}],
}
BESIDE: dict[str, dict[str, Any]] = {
    "parallel_tool_calls": {"tools": [CALL]},
    "tool_choice": {"tools": [CALL]},
    "top_logprobs": {"logprobs": True},
}
NEEDING: dict[str, Any] = {"parallel_tool_calls": False, "tool_choice": "required"}
# Read where the answer is made, not in what is to be generated; other tests see what they do.
OF_THE_ANSWER = {"stream", "stream_options", "echo", "previous_response_id"}


def _fields() -> list[tuple[type[Strict], str]]:
    return [
        (model, field.alias or name)
        for model in BODIES
        for name, field in model.model_fields.items()
        if name not in OF_THE_ANSWER
    ]


@pytest.mark.parametrize(("model", "name"), _fields())
def test_every_field_has_an_effect_or_is_named(model: type[Strict], name: str) -> None:
    beside = BESIDE.get(name, {})
    if model is CreateResponse:
        tools = [{"type": "function", "name": "f"}]
        beside = {"tools": tools} if "tools" in beside else {}
    base = BODIES[model] | beside
    value = OF_ONE.get((model, name), NEEDING.get(name, VALUES.get(name, 2)))
    body = base | {name: value}
    if (model, name) == (CreateJob, "prompt"):
        del body["messages"]

    assert _made(model, base) != _made(model, body) or name in _named(model, body)


def _named(model: type[Strict], body: dict[str, Any]) -> set[str]:
    parsed: Any = model.model_validate(body)
    return {*ignored_fields(model, body), *without_effect(parsed)}


def _made(model: type[Strict], body: dict[str, Any]) -> object:
    try:
        parsed: Any = model.model_validate(body)
        return parsed.generation()
    except (ValidationError, ServiceError) as refusal:
        return str(refusal)


@pytest.mark.parametrize(
    ("model", "fields", "named"),
    [
        (CreateChatCompletion, {"zeta": 1, "alpha": {}, "beta": None}, ["alpha", "zeta"]),
        (CreateChatCompletion, {"stream_options": {"a": 1}}, ["stream_options.a"]),
        (
            CreateChatCompletion,
            {"messages": [MESSAGES[0], MESSAGES[0] | {"x": 1}, MESSAGES[0] | {"x": 2}]},
            ["messages.1.x"],
        ),
        (
            CreateChatCompletion,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "y": 1}]}]},
            ["messages.0.content.0.y"],
        ),
        (
            CreateChatCompletion,
            {"tools": [{"type": "function", "function": {"name": "f", "z": 1}, "w": 1}]},
            ["tools.0.function.z", "tools.0.w"],
        ),
        (CreateJob, {"tools": [CALL | {"w": 1}]}, ["tools.0.w"]),
        (CreateChatCompletion, {"tools": [{**CALL, "function": {"name": "f"}}]}, []),
        (CreateChatCompletion, {"messages": [MESSAGES[0] | {"refusal": None}]}, []),
        (CreateChatCompletion, {"metadata": {"any": "thing"}, "logit_bias": {"1": 1.0}}, []),
        (CreateChatCompletion, {"prediction": {"content": "x"}}, ["prediction"]),
        (
            CreateResponse,
            {"text": {"format": {"type": "text", "q": 1}, "r": 2}},
            ["text.format.q", "text.r"],
        ),
        (CreateResponse, {"input": [{"role": "user", "content": "x", "k": 1}]}, ["input.0.k"]),
        (CreateCompletion, {"use_beam_search": True}, ["use_beam_search"]),
    ],
)
def test_what_has_no_effect_is_named_with_its_path(
    model: type[Strict], fields: dict[str, Any], named: list[str]
) -> None:
    assert ignored_fields(model, BODIES[model] | fields) == named


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (CreateResponse, {"text": {"format": {"type": "json_object", "schema": SCHEMA}}}),
        (CreateResponse, {"text": {"format": {"type": "text", "schema": SCHEMA}}}),
        (CreateResponse, {"response_format": {"type": "json_object"}}),
        (CreateChatCompletion, {"response_format": {"type": "json_object", "schema": SCHEMA}}),
        (
            CreateChatCompletion,
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        ),
        (
            CreateChatCompletion,
            {"response_format": {"type": "json_object"}, "guided_regex": "a"},
        ),
        (CreateChatCompletion, {"guided_choice": ["a"], "guided_regex": "a"}),
        (CreateChatCompletion, {"guided_choice": ["a"], "structured_outputs": {"regex": "a"}}),
        (CreateChatCompletion, {"structured_outputs": {"regex": "a", "whitespace_pattern": "x"}}),
    ],
)
def test_a_form_that_can_not_be_kept_is_refused(
    model: type[Strict], fields: dict[str, Any]
) -> None:
    assert isinstance(_made(model, BODIES[model] | fields), str)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("json", SCHEMA), ("regex", "a+"), ("choice", ["a", "b"]), ("grammar", 'start: "a"')],
)
def test_older_names_of_a_form_mean_the_same(kind: str, value: Any) -> None:
    body = BODIES[CreateChatCompletion]
    newer = CreateChatCompletion.model_validate(body | {"structured_outputs": {kind: value}})
    older = CreateChatCompletion.model_validate(body | {f"guided_{kind}": value})

    form, other = newer.generation().form, older.generation().form

    assert form is not None
    assert other is not None
    assert form.text == other.text
    assert other.param == f"guided_{kind}"


MODEL = cast(
    Any,
    SimpleNamespace(
        codec=SimpleNamespace(special_tokens=frozenset(), tool_format=format_named("hermes"))
    ),
)


@pytest.mark.parametrize("choice", ["required", CALL])
@pytest.mark.parametrize(
    "fields", [{"structured_outputs": {"json": SCHEMA}}, {"guided_json": SCHEMA}]
)
def test_a_form_of_all_beside_a_forced_tool_is_refused(fields: dict[str, Any], choice: Any) -> None:
    body = BODIES[CreateChatCompletion] | {"tools": [CALL], "tool_choice": choice} | fields
    generation = CreateChatCompletion.model_validate(body).generation()

    with pytest.raises(UnsupportedParameter) as refused:
        _grammar_of(generation, MODEL)

    assert refused.value.param in ("structured_outputs.json", "guided_json")


def test_the_form_of_an_answer_beside_a_forced_tool_is_no_contradiction() -> None:
    """Agents ask for both, turn after turn: there is no answer yet."""
    fields = {
        "tools": [CALL],
        "tool_choice": "required",
        "response_format": {"type": "json_object"},
    }
    body = BODIES[CreateChatCompletion] | fields

    grammar = _grammar_of(CreateChatCompletion.model_validate(body).generation(), MODEL)

    assert grammar is not None
    assert "answer" not in grammar.text
