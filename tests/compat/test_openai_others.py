"""The official Python SDK: text completions, models, files."""

from __future__ import annotations

from typing import Any

import openai
import pydantic
from openai.types import Completion, FileObject, Model

from tests.compat.requests import MODEL
from tests.compat.strict_types import assert_fits

PROMPT = "A service tier is"


def complete(client: openai.OpenAI, **fields: Any) -> Any:
    arguments: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    return client.completions.create(model=MODEL, **(arguments | fields))


def test_a_completion_has_the_fields_of_the_sdk(client: openai.OpenAI) -> None:
    raw = client.completions.with_raw_response.create(
        model=MODEL, prompt=PROMPT, max_tokens=8, logprobs=2, n=2
    )

    assert_fits(Completion, raw.http_response.json())


def test_every_chunk_of_a_completion_has_the_fields_of_the_sdk(client: openai.OpenAI) -> None:
    with client.completions.with_streaming_response.create(
        model=MODEL, prompt=PROMPT, max_tokens=8, logprobs=1, stream=True
    ) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]

    assert lines[-1] == "data: [DONE]"
    any_json = pydantic.TypeAdapter(Any)
    # The SDK has no type of its own for chunks: its own says "stop" where a chunk has null yet.
    documents = [any_json.validate_json(line[6:]) for line in lines[:-1]]
    assert_fits(Completion, documents[-1])
    assert {tuple(document["choices"][0]) for document in documents} == {
        ("index", "text", "logprobs", "finish_reason")
    }


def test_a_stream_of_a_completion_says_the_same(client: openai.OpenAI) -> None:
    whole = complete(client).choices[0].text

    stream = complete(client, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)

    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens <= 12


def test_echo_puts_the_prompt_in_front(client: openai.OpenAI) -> None:
    plain = complete(client).choices[0].text

    assert complete(client, echo=True).choices[0].text == PROMPT + plain


def test_logprobs_of_a_completion_run_in_parallel_lists(client: openai.OpenAI) -> None:
    choice = complete(client, logprobs=2).choices[0]

    logprobs = choice.logprobs
    assert "".join(logprobs.tokens).startswith(choice.text)
    lists = (logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset)
    assert len({len(each) for each in lists}) == 1
    assert logprobs.text_offset[0] == 0


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    models = client.models.list().data

    assert {"demo", "demo-mini"} <= {model.id for model in models}
    found = client.models.retrieve("demo")
    assert found in models
    assert isinstance(found, Model)
    assert found.owned_by == "millrace"


def test_files_go_up_and_down(client: openai.OpenAI) -> None:
    content = b'{"custom_id": "a"}\n'

    raw = client.files.with_raw_response.create(file=("in.jsonl", content), purpose="batch")
    file = raw.parse()

    assert_fits(FileObject, raw.http_response.json())
    assert client.files.retrieve(file.id) == file
    assert file.id in [each.id for each in client.files.list(purpose="batch")]
    assert client.files.content(file.id).read() == content
    assert client.files.delete(file.id).deleted
    assert file.id not in [each.id for each in client.files.list()]


def test_pages_of_files_follow_each_other(client: openai.OpenAI) -> None:
    files = [
        client.files.create(file=(f"{number}.txt", b"text"), purpose="user_data")
        for number in range(5)
    ]

    listed = [each.id for each in client.files.list(limit=2, purpose="user_data")]

    assert listed == [file.id for file in reversed(files)]
