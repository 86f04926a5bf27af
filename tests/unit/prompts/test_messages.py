"""Messages as chat templates get them."""

from __future__ import annotations

import pytest

from api.schemas.messages import Message
from api.schemas.responses import CreateResponse

DEEP = '{"a":' * 900 + "1" + "}" * 900
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ('{"a": 1}', {"a": 1}),
        ("{}", {}),
        ("[1]", "[1]"),
        ("not JSON", "not JSON"),
        ("", ""),
        (DEEP, DEEP),
    ],
)
def test_arguments_are_an_object_where_they_can_be(written: str, shown: object) -> None:
    function = {"name": "f", "arguments": written}
    message = Message.model_validate(
        {"role": "assistant", "tool_calls": [CALL | {"function": function}]}
    )
    response = CreateResponse.model_validate(
        {
            "model": "m",
            "input": [
                {"type": "function_call", "call_id": "c", **function},
                {"type": "function_call_output", "call_id": "c", "output": "ok"},
            ],
        }
    )

    prompt = response.generation().prompt
    of_chat = message.for_template()["tool_calls"][0]["function"]
    of_response = prompt.messages[0]["tool_calls"][0]["function"]  # type: ignore[union-attr]

    assert of_chat == of_response == {"name": "f", "arguments": shown}
