"""instructor: objects of a pydantic class, by tools and by JSON schema."""

from __future__ import annotations

import instructor
import openai
import pydantic
import pytest

from tests.compat.requests import MODEL

MODES = [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA]


class Place(pydantic.BaseModel):
    """A city that somebody asks about."""

    city: str = pydantic.Field(max_length=40)


@pytest.fixture(params=MODES, ids=[mode.value for mode in MODES])
def patched(request: pytest.FixtureRequest, client: openai.OpenAI) -> instructor.Instructor:
    return instructor.from_openai(client, mode=request.param)


def test_an_object_is_extracted(patched: instructor.Instructor) -> None:
    place = patched.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        response_model=Place,
        temperature=0,
        max_tokens=100,
        max_retries=0,
    )

    assert isinstance(place, Place)
    assert place.city == "Paris"
