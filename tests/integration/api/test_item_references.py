"""An input may name items of the tenant's earlier responses by their ids."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from store.pools import DictConnection
from tests.integration.api.conftest import Tenant
from tests.integration.api.producer import Producer
from tests.integration.api.responding import answered

PATH = "/v1/responses"


def _reference(item_id: str) -> dict[str, str]:
    return {"type": "item_reference", "id": item_id}


async def _num_tokens(http: httpx.AsyncClient, **body: Any) -> int:
    answer = await http.post(f"{PATH}/input_tokens", json={"model": "tiny", **body})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["input_tokens"])


async def _refusal(http: httpx.AsyncClient, **body: Any) -> tuple[int, str, str]:
    answer = await http.post(PATH, json={"model": "tiny", **body})
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


async def _first(client: openai.AsyncOpenAI, owner: DictConnection, producer: Producer) -> Any:
    return await answered(client, owner, producer, "blue", input="what colour")


async def test_a_named_item_stands_where_its_reference_does(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, owner: DictConnection, producer: Producer
) -> None:
    first = await _first(client, owner, producer)
    [message] = first.output
    asked = [item.id async for item in client.responses.input_items.list(first.id)]

    plain = [_user("what colour"), _assistant("blue"), _user("sure")]
    named = [_reference(asked[0]), {"id": message.id}, _user("sure")]
    second = await answered(client, owner, producer, "yes", input=named)

    listing: Any = client.responses.input_items.list(second.id, order="asc")
    shown = [item async for item in listing]
    assert [item.role for item in shown] == ["user", "assistant", "user"]
    assert [item.content[0].text for item in shown] == ["what colour", "blue", "sure"]
    assert [item.id for item in shown[:2]] == [asked[0], message.id]
    assert second.usage.input_tokens == await _num_tokens(http, input=plain)
    assert await _num_tokens(http, input=named) == second.usage.input_tokens


async def test_a_conversation_goes_on_over_responses_whose_inputs_name_items(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, owner: DictConnection, producer: Producer
) -> None:
    first = await _first(client, owner, producer)
    item_id = first.output[0].id
    second = await answered(
        client, owner, producer, "yes", input=[_reference(item_id), _user("sure")]
    )

    plain = [_assistant("blue"), _user("sure"), _assistant("yes"), _user("why")]
    named = {"input": [_user("why")], "previous_response_id": second.id}

    assert await _num_tokens(http, **named) == await _num_tokens(http, input=plain)


async def test_an_item_stands_once_in_a_conversation(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, owner: DictConnection, producer: Producer
) -> None:
    first = await _first(client, owner, producer)
    item_id = first.output[0].id
    whole = [_user("what colour"), _assistant("blue"), _user("why")]

    twice = [_user("what colour"), _reference(item_id), _reference(item_id), _user("why")]
    of_the_chain = [_reference(item_id), _user("why")]

    assert await _num_tokens(http, input=twice) == await _num_tokens(http, input=whole)
    assert await _num_tokens(
        http, input=of_the_chain, previous_response_id=first.id
    ) == await _num_tokens(http, input=whole)


async def test_an_item_that_is_gone_is_not_found(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, owner: DictConnection, producer: Producer
) -> None:
    first = await _first(client, owner, producer)
    item_id = first.output[0].id
    second = await answered(
        client, owner, producer, "yes", input=[_reference(item_id), _user("sure")]
    )
    await client.responses.delete(first.id)

    gone = await _refusal(http, input=[_user("x"), _reference(item_id)])
    behind = await _refusal(http, input="x", previous_response_id=second.id)

    assert gone == (404, "item_not_found", "input.1.id")
    assert behind == (404, "item_not_found", "previous_response_id")


@pytest.mark.parametrize(
    "item_id", ["msg_x", "call_0", "", "msg_" + "0" * 34, "msg_in_" + "0" * 36, "fc_" + "f" * 34]
)
async def test_what_is_no_item_is_not_found(http: httpx.AsyncClient, item_id: str) -> None:
    refused = await _refusal(http, input=[_reference(item_id), _user("x")])

    assert refused == (404, "item_not_found", "input.0.id")


async def test_an_item_beyond_the_last_is_not_found(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, owner: DictConnection, producer: Producer
) -> None:
    first = await _first(client, owner, producer)
    beyond = first.output[0].id[:-2] + "01"

    assert (await _refusal(http, input=[_reference(beyond), _user("x")]))[0] == 404


async def test_anothers_item_and_an_unstored_one_are_not_found(
    client: openai.AsyncOpenAI,
    http: httpx.AsyncClient,
    api_url: str,
    *,
    other_tenant: Tenant,
    owner: DictConnection,
    producer: Producer,
) -> None:
    first = await _first(client, owner, producer)
    unstored = await answered(client, owner, producer, "red", input="what", store=False)

    async with httpx.AsyncClient(base_url=api_url, headers=other_tenant.headers) as other:
        anothers = await _refusal(other, input=[_reference(first.output[0].id), _user("x")])
    own = await _refusal(http, input=[_reference(unstored.output[0].id), _user("x")])

    assert anothers == own == (404, "item_not_found", "input.0.id")


async def test_a_reference_to_reasoning_is_skipped_and_named(http: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "input": [_reference("rs_1"), _user("x")], "background": True}

    answer = await http.post(PATH, json=body)

    assert answer.status_code == 200
    assert answer.headers["x-millrace-ignored"] == "input.item_reference"
