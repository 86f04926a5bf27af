"""What a client wants continued, in its three forms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation, rendered by the model's chat template, and the tools it may call."""

    messages: Messages
    tools: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A bare text."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids of the model's own tokenizer, taken as they are."""

    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class PromptList:
    """Several, each of which is continued by itself."""

    prompts: Sequence[TextPrompt | TokenPrompt]


Prompt = ChatPrompt | TextPrompt | TokenPrompt | PromptList


def listed_prompts(value: Any) -> list[Any]:
    """OpenAI's `prompt`, a text, token ids, or a list of either, as the list of its prompts."""
    if isinstance(value, str) or (value and isinstance(value[0], int)):
        return [value]
    return list(value)


def num_chars(prompt: Prompt) -> int:
    """Characters of client text; a token id counts as one."""
    match prompt:
        case TextPrompt(text):
            return len(text)
        case TokenPrompt(token_ids):
            return len(token_ids)
        case ChatPrompt(messages, tools):
            return sum(map(len, texts_of([messages, tools])))
        case PromptList(prompts):
            return sum(map(num_chars, prompts))


def is_short(prompt: Prompt, max_chars: int) -> bool:
    """Whether it has few characters and few values. Takes no longer for a long one."""
    if not isinstance(prompt, ChatPrompt):
        return num_chars(prompt) <= max_chars
    left = max_chars
    waiting: list[Any] = [prompt.messages, prompt.tools]
    while waiting and left >= 0:
        value = waiting.pop()
        left -= len(value) if isinstance(value, str) else 1
        if isinstance(value, Mapping | list | tuple):
            left -= len(value)
            if left >= 0:
                waiting += [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
    return left >= 0


def texts_of(value: Any) -> Iterator[str]:
    """All strings below a value, names of members included: templates write those too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, member in value.items():
            yield from texts_of(name)
            yield from texts_of(member)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from texts_of(member)
