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


Prompt = ChatPrompt | TextPrompt | TokenPrompt


def num_chars(prompt: Prompt) -> int:
    """Characters of client text; a token id counts as one."""
    match prompt:
        case TextPrompt(text):
            return len(text)
        case TokenPrompt(token_ids):
            return len(token_ids)
        case ChatPrompt(messages, tools):
            return sum(map(len, texts_of([messages, tools])))


def is_short(prompt: Prompt, max_chars: int) -> bool:
    """Whether it has no more characters than that. Takes no longer for a long one."""
    if not isinstance(prompt, ChatPrompt):
        return num_chars(prompt) <= max_chars
    left = max_chars
    for text in texts_of([prompt.messages, prompt.tools]):
        left -= len(text)
        if left < 0:
            return False
    return True


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
