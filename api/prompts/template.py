"""Chat templates, rendered as transformers does: same environment, same variables, same filters.

Templates come from the catalog, never from a request. They still run in a sandbox, because a
model's template is a file somebody else wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from api.prompts.prompt import Messages
from tasks.errors import InvalidPrompt

# Entries of tokenizer_config.json that templates may name.
_SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class ChatTemplate:
    """One model's compiled template. Thread-safe."""

    def __init__(self, source: str, tokenizer_config: Mapping[str, Any]) -> None:
        self._template: Template = _environment().from_string(source)
        self._variables = special_tokens(tokenizer_config)

    def render(self, messages: Messages, tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """The whole prompt as text, up to where the assistant speaks. Raises InvalidPrompt."""
        try:
            return self._template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=True,
                **self._variables,
            )
        except Exception as error:  # a template is a program: it may divide by zero
            # The template's own words, as `roles must alternate`; else most likely a message lacks
            # what it needs.
            reason = error.message if isinstance(error, TemplateError) else "unsuitable content"
            message = f"The model's chat template refuses these messages: {reason}"
            raise InvalidPrompt(message, param="messages") from None


def special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and its like, which stand as text or as an object with `content`."""
    tokens = {}
    for name in _SPECIAL_TOKEN_NAMES:
        value = tokenizer_config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks training text; here it just shows its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own filter, without HTML escapes."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)  # noqa: DTZ005 (as in transformers: the local day)
