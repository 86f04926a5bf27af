"""The official Python SDK: responses."""

from __future__ import annotations

import openai
import pytest
from openai.types.responses import Response

from tests.compat.requests import MODEL
from tests.compat.test_openai_chat import Answer

QUESTION = "What is a service tier?"


def test_a_response_is_created_found_and_deleted(client: openai.OpenAI) -> None:
    made = client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=40)

    assert isinstance(made, Response)
    assert "priority" in made.output_text
    assert client.responses.retrieve(made.id).output_text == made.output_text
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_the_stream_helper_ends_with_the_response(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model=MODEL, input=QUESTION, temperature=0, max_output_tokens=200
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()

    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert events[0].type == "response.created"
    assert "".join(deltas) == final.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_parse_makes_a_pydantic_object(client: openai.OpenAI) -> None:
    made = client.responses.parse(
        model=MODEL, input=QUESTION, text_format=Answer, max_output_tokens=200
    )

    assert isinstance(made.output_parsed, Answer)
