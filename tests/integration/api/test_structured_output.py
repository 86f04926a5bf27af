"""Structured output at the API: what reaches the worker, and what a costly grammar holds up."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID

import httpx
import pytest

from api.grammars.queue import FairQueue
from store.pools import DictConnection
from tests.integration.api.bad_bodies import ENDLESS, EXPONENTIAL, RECURSIVE
from tests.integration.api.conftest import Tenant
from tests.integration.api.producer import Producer
from tests.support.waiting import until

BODY: dict[str, Any] = {"model": "tiny", "prompt": "hello", "max_tokens": 9}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}


def _schema_body(schema: dict[str, Any]) -> dict[str, Any]:
    return BODY | {"structured_outputs": {"json": schema}}


async def test_schema_reaches_every_attempt_as_one_grammar(
    http: httpx.AsyncClient, producer: Producer
) -> None:
    created = await http.post("/v1/jobs", json=BODY | {"response_format": FORMAT})

    assert created.status_code == 202
    grammar = producer.claim().claimed.grammar
    assert grammar is not None
    (compiled,) = json.loads(grammar)["grammars"]
    assert compiled["json_schema"] | SCHEMA == compiled["json_schema"]
    assert list(compiled["json_schema"]["properties"]) == ["name", "age"]


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"regex": r"\d{4}-\d{2}"}},
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"structured_outputs": {"grammar": 'start: "a"+'}},
    ],
)
async def test_each_form_is_stored_with_the_payload(
    http: httpx.AsyncClient, owner: DictConnection, fields: dict[str, Any]
) -> None:
    created = await http.post("/v1/jobs", json=BODY | fields)

    assert created.status_code == 202, created.text
    assert _payload(owner)["grammar"]
    assert _payload(owner)["sampling"] == {"max_tokens": 9}


@pytest.mark.parametrize("format_", [None, {"type": "text"}])
async def test_free_text_has_no_grammar(
    http: httpx.AsyncClient, owner: DictConnection, format_: dict[str, str] | None
) -> None:
    created = await http.post("/v1/jobs", json=BODY | {"response_format": format_})

    assert created.status_code == 202
    assert _payload(owner)["grammar"] is None


async def test_same_key_with_another_schema_is_another_request(http: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "k"}
    first = await http.post("/v1/jobs", json=_schema_body(SCHEMA), headers=key)

    again = await http.post("/v1/jobs", json=_schema_body(SCHEMA), headers=key)
    other = await http.post("/v1/jobs", json=_schema_body({"type": "array"}), headers=key)

    assert again.json()["id"] == first.json()["id"]
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        (
            {"response_format": FORMAT | {"json_schema": {"name": "a", "schema": {"not": {}}}}},
            "response_format.json_schema.schema",
            'The schema can\'t be used: Unimplemented keys: ["not"].',
        ),
        (
            {"structured_outputs": {"json": EXPONENTIAL}},
            "structured_outputs.json",
            "The schema can't be used: schema too large.",
        ),
        (
            {"structured_outputs": {"json": RECURSIVE}},
            "structured_outputs.json",
            "No finite text satisfies the schema.",
        ),
        (
            {"structured_outputs": {"regex": "a("}},
            "structured_outputs.regex",
            "The regex can't be used: unclosed group.",
        ),
        (
            {"structured_outputs": {"grammar": "start: b"}},
            "structured_outputs.grammar",
            "The grammar can't be used: ",
        ),
    ],
)
async def test_refusal_names_the_parameter_and_the_reason(
    http: httpx.AsyncClient, fields: dict[str, Any], param: str, reason: str
) -> None:
    refused = await http.post("/v1/jobs", json=BODY | fields)

    error = refused.json()["error"]
    assert refused.status_code == 400
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_grammar")
    assert error["param"] == param
    assert error["message"].startswith(reason)


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/chat/completions", "/v1/responses"])
async def test_tools_that_nobody_can_call_are_refused(
    http: httpx.AsyncClient, path: str, choice: str
) -> None:
    function = {"name": "look", "parameters": RECURSIVE}
    is_response = path == "/v1/responses"
    body: dict[str, Any] = {
        "model": "tiny",
        "tool_choice": choice,
        "tools": [{"type": "function"} | (function if is_response else {"function": function})],
    }
    message = [{"role": "user", "content": "hello"}]

    refused = await http.post(path, json=body | {"input" if is_response else "messages": message})

    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "invalid_grammar", "tools")
    assert error["message"] == "No finite text satisfies the parameters of the tool 'look'."


async def test_costly_grammar_holds_up_no_other_request(
    http: httpx.AsyncClient, api_url: str, other_tenant: Tenant
) -> None:
    costly = asyncio.create_task(http.post("/v1/jobs", json=_schema_body(ENDLESS)))
    async with httpx.AsyncClient(base_url=api_url, headers=other_tenant.headers) as other:
        answers = [await other.post("/v1/jobs", json=BODY) for _ in range(5)]

        assert not costly.done()
    assert {answer.status_code for answer in answers} == {202}
    assert (await costly).status_code == 400


async def test_sixteen_clients_with_new_schemas_at_once_are_all_served(
    http: httpx.AsyncClient,
) -> None:
    bodies = [_schema_body({"type": "array", "maxItems": number}) for number in range(1, 17)]

    answers = await asyncio.gather(*(http.post("/v1/jobs", json=body) for body in bodies))

    assert {answer.status_code for answer in answers} == {202}


async def test_a_client_that_leaves_while_its_grammar_waits_gives_up_its_place(
    http: httpx.AsyncClient,
    api_url: str,
    other_tenant: Tenant,
    owner: DictConnection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queues: list[FairQueue] = []
    enter = FairQueue.enter

    async def note(queue: FairQueue, tenant_id: UUID) -> None:
        queues.append(queue)
        await enter(queue, tenant_id)

    monkeypatch.setattr(FairQueue, "enter", note)
    other = httpx.AsyncClient(base_url=api_url, headers=other_tenant.headers, timeout=30)
    async with other:
        costly = asyncio.create_task(other.post("/v1/jobs", json=_schema_body(ENDLESS)))
        await until(lambda: queues, what="the costly one's turn")
        leaving = asyncio.create_task(http.post("/v1/jobs", json=_schema_body(SCHEMA)))
        await until(lambda: queues[0].num_waiting, what="a place in the queue")

        leaving.cancel()
        await until(lambda: not queues[0].num_waiting, what="the place given up")

        assert not costly.done()
        assert (await costly).status_code == 400
    assert owner.execute("SELECT id FROM jobs").fetchall() == []


async def test_extras_of_vllm_reach_the_payload(
    http: httpx.AsyncClient, owner: DictConnection
) -> None:
    extras = {"stop_token_ids": [7, 8], "min_tokens": 2, "ignore_eos": True}

    created = await http.post("/v1/jobs", json=BODY | extras)

    assert created.status_code == 202
    assert _payload(owner)["sampling"] == extras | {"max_tokens": 9}


def _payload(owner: DictConnection) -> dict[str, Any]:
    row = owner.execute("SELECT * FROM job_payloads").fetchone()
    assert row is not None
    return row
