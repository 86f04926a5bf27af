"""How models write tool calls. A format is found by the marks in a model's chat template."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """A call is `begin`, an object with the name and the arguments, `end`.

    Without a `begin` the whole answer is one call if it begins as such an object does.
    """

    name: str  # stored with the job
    begin: str
    end: str
    arguments_key: str = "arguments"


_FORMATS = (
    ToolFormat(name="pipes", begin="<|tool_call|>", end="<|tool_call_end|>"),
    ToolFormat(name="hermes", begin="<tool_call>", end="</tool_call>"),
    ToolFormat(name="llama3", begin="", end="", arguments_key="parameters"),
)
_BY_NAME = {format_.name: format_ for format_ in _FORMATS}


def find_format(template: str) -> ToolFormat | None:
    """The format of a model with this chat template; None if it takes no tools or is not known."""
    if "tools" not in template:
        return None
    for format_ in _FORMATS:
        if format_.begin and format_.begin in template:
            return format_
    is_llama = '"parameters": ' in template and "<|start_header_id|>" in template
    return _BY_NAME["llama3"] if is_llama else None


def format_named(name: str) -> ToolFormat:
    """A stored format. Raises KeyError."""
    return _BY_NAME[name]


def is_special(mark: str, special_tokens: Collection[str]) -> bool:
    """Whether a mark is a token of its own, which no text can spell."""
    return mark in special_tokens
