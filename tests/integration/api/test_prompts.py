"""Prompts are those of `apply_chat_template`, and client text never becomes a control token."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from api.prompts.codec import PromptCodec
from api.prompts.encoder import PromptEncoder
from api.prompts.prompt import ChatPrompt, TextPrompt
from store.model_assets import open_model, read_model_files
from tasks.errors import ContextLengthExceeded, InvalidPrompt, ServiceUnavailable
from tests.support.tiny_tokenizer import CONTROL_TOKENS, write_model_folder

ROOT = Path(__file__).resolve().parents[3]
DEMO_MODELS = [ROOT / "models/demo/demo", ROOT / "models/demo/demo-mini"]

CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "What is a service tier?"}],
    [{"role": "user", "content": ""}],
    [
        {"role": "system", "content": "Be brief. "},
        {"role": "user", "content": "  naïve — 東京 🙂\n\n\tx  "},
        {"role": "assistant", "content": "<think>hm</think> yes < | > <| |>"},
        {"role": "user", "content": "{{ 7 * 7 }} {% raw %} </s> \u2028 end"},
    ],
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("prompts") / "tiny")


@pytest.fixture(scope="module")
def codec(tiny: Path) -> PromptCodec:
    return _codec(tiny)


def _codec(folder: Path) -> PromptCodec:
    return PromptCodec(read_model_files(str(folder), open_model(str(folder), folder, None)).assets)


def _reference(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def _expected(folder: Path, chat: list[dict[str, str]]) -> list[int]:
    ids: Any = _reference(folder).apply_chat_template(chat, add_generation_prompt=True)
    return list(ids["input_ids"] if not isinstance(ids, list) else ids)


@pytest.mark.parametrize("chat", CHATS)
def test_equal_to_apply_chat_template(
    tiny: Path, codec: PromptCodec, chat: list[dict[str, str]]
) -> None:
    assert codec.encode_chat(ChatPrompt(chat)) == _expected(tiny, chat)


@pytest.mark.parametrize("folder", DEMO_MODELS, ids=lambda folder: folder.name)
@pytest.mark.parametrize("chat", CHATS)
def test_demo_models_are_equal_to_apply_chat_template(
    folder: Path, chat: list[dict[str, str]]
) -> None:
    assert _codec(folder).encode_chat(ChatPrompt(chat)) == _expected(folder, chat)


def test_bare_prompt_is_equal_to_the_tokenizer(tiny: Path, codec: PromptCodec) -> None:
    for text in ("hello world", "  naïve — 東京 🙂", "<think>"):
        assert codec.encode_prompt(text) == _reference(tiny)(text)["input_ids"]


@pytest.mark.parametrize("folder", [*DEMO_MODELS, None], ids=str)
def test_control_tokens_in_client_text_stay_text(folder: Path | None, tiny: Path) -> None:
    folder = folder or tiny
    codec, reference = _codec(folder), _reference(folder)
    control = set(reference.all_special_ids)
    harmless = [{"role": "user", "content": "hello"}]
    framing = [i for i in codec.encode_chat(ChatPrompt(harmless)) if i in control]

    for token in reference.all_special_tokens:
        text = f"hello{token}system{token}\n{token}"
        chat_ids = codec.encode_chat(ChatPrompt([{"role": "user", "content": text}]))
        prompt_ids = codec.encode_prompt(text)

        assert [i for i in chat_ids if i in control] == framing
        assert not control.intersection(prompt_ids)
        assert reference.decode(prompt_ids) == text


@settings(max_examples=200, deadline=None)
@given(pieces=st.lists(st.sampled_from([*CONTROL_TOKENS, "<|", "|>", "end", " ", "\ue000", "é"])))
def test_no_mixture_makes_a_control_token(codec: PromptCodec, pieces: list[str]) -> None:
    text = "".join(pieces)
    control = {codec._tokenizer.token_to_id(token) for token in CONTROL_TOKENS}

    ids = codec.encode_prompt(text)

    assert not control.intersection(ids)
    assert codec._tokenizer.decode(ids) == text


def test_a_chat_of_many_messages_costs_no_more_for_a_control_token(codec: PromptCodec) -> None:
    """What stands between control tokens, those of the template, is looked at once."""
    chat = [{"role": "user", "content": "many words " * 30} for _ in range(256)]
    began = time.process_time()

    ids = codec.encode_chat(ChatPrompt([{"role": "user", "content": "<|end|>"}, *chat]))

    assert time.process_time() - began < 5  # it was 40 s
    assert ids[-len(chat) :] == codec.encode_chat(ChatPrompt(chat))[-len(chat) :]


def test_template_that_refuses_is_an_invalid_prompt(codec: PromptCodec) -> None:
    with pytest.raises(InvalidPrompt, match="no developers here"):
        codec.encode_chat(ChatPrompt([{"role": "developer", "content": "x"}]))


def test_text_with_every_mark_and_a_control_token_is_refused(codec: PromptCodec) -> None:
    marks = "".join(map(chr, (*range(0xE000, 0xE400), *range(0xF0000, 0xF0400))))

    with pytest.raises(InvalidPrompt):
        codec.encode_prompt(marks + "<|end|>")


def test_model_without_a_template_takes_no_messages(tiny: Path) -> None:
    assets = {"tokenizer": (tiny / "tokenizer.json").read_bytes()}

    codec = PromptCodec(assets)

    assert not codec.has_template
    with pytest.raises(InvalidPrompt):
        codec.encode_chat(ChatPrompt(CHATS[0]))


async def _encode(
    encoder: PromptEncoder,
    codec: PromptCodec,
    prompt: TextPrompt,
    *,
    tenant_id: UUID | None = None,
    context_length: int = 1 << 20,
) -> list[int]:
    [ids] = await encoder.encode(
        codec,
        prompt,
        tenant_id=tenant_id or uuid4(),
        context_length=context_length,
        param="prompt",
    )
    return ids


async def test_long_prompts_of_one_tenant_leave_a_thread_to_another(codec: PromptCodec) -> None:
    encoder = PromptEncoder(num_threads=2, max_waiting=32)
    one, long = uuid4(), TextPrompt("What is a service tier? " * 20_000)
    order: list[str] = []

    async def encode(name: str, tenant_id: UUID, prompt: TextPrompt) -> None:
        await _encode(encoder, codec, prompt, tenant_id=tenant_id)
        order.append(name)

    await asyncio.gather(
        *(encode("long", one, long) for _ in range(4)),
        encode("another's", uuid4(), TextPrompt("What is a service tier? " * 100)),
    )
    encoder.close()

    assert order.index("another's") <= 1


@pytest.mark.alone
async def test_long_prompts_do_not_hold_up_the_event_loop(codec: PromptCodec) -> None:
    encoder = PromptEncoder(num_threads=2, max_waiting=8)
    prompt = TextPrompt("What is a service tier? " * 20_000)
    lag = 0.0

    async def watch() -> None:
        nonlocal lag
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.001)
            lag = max(lag, time.monotonic() - began)

    watcher = asyncio.create_task(watch())
    began = time.monotonic()
    await asyncio.gather(*(_encode(encoder, codec, prompt) for _ in range(4)))
    elapsed = time.monotonic() - began
    watcher.cancel()
    encoder.close()

    assert lag < max(0.2, elapsed / 4)


async def test_too_many_long_prompts_are_refused(codec: PromptCodec) -> None:
    encoder = PromptEncoder(num_threads=1, max_waiting=1)
    prompt = TextPrompt("What is a service tier? " * 2_000)

    answers = await asyncio.gather(
        *(_encode(encoder, codec, prompt) for _ in range(5)),
        return_exceptions=True,
    )
    encoder.close()

    assert [isinstance(answer, ServiceUnavailable) for answer in answers] == [False] * 2 + [
        True
    ] * 3


async def test_hopeless_prompt_is_refused_without_tokenizing(codec: PromptCodec) -> None:
    encoder = PromptEncoder(num_threads=1, max_waiting=1)

    with pytest.raises(ContextLengthExceeded):
        await _encode(encoder, codec, TextPrompt("x" * 1_000_000), context_length=16)
    encoder.close()
