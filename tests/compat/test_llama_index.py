"""LlamaIndex's OpenAILike: chat, streams, and text completions."""

from __future__ import annotations

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

from tests.compat.requests import MODEL
from tests.support.member import Tenant

MESSAGES = [ChatMessage(role="user", content="What is a service tier?")]


@pytest.fixture
def llm(base_url: str, tenant: Tenant) -> OpenAILike:
    return OpenAILike(
        model=MODEL,
        api_base=base_url,
        api_key=tenant.api_key,
        is_chat_model=True,
        temperature=0,
        max_tokens=24,
    )


def test_a_stream_says_what_the_answer_says(llm: OpenAILike) -> None:
    answer = llm.chat(MESSAGES)

    parts = list(llm.stream_chat(MESSAGES))

    assert "".join(part.delta or "" for part in parts) == answer.message.content
    assert "priority" in (answer.message.content or "")


async def test_the_async_stream_says_the_same(llm: OpenAILike) -> None:
    answer = await llm.achat(MESSAGES)

    parts = [part async for part in await llm.astream_chat(MESSAGES)]

    assert "".join(part.delta or "" for part in parts) == answer.message.content


def test_a_bare_prompt_is_completed(llm: OpenAILike) -> None:
    llm.is_chat_model = False

    whole = llm.complete("A service tier is")
    parts = list(llm.stream_complete("A service tier is"))

    assert whole.text
    assert "".join(part.delta or "" for part in parts) == whole.text
