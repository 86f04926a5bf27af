"""The tools of a request, whichever dialect named them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class ToolMode(StrEnum):
    """OpenAI's `tool_choice`."""

    AUTO = "auto"  # the model decides
    REQUIRED = "required"  # at least one call


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]
    is_strict: bool = False

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": function | {"parameters": self.parameters}}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """What may be called and how. `callable_names` are those of `tools` that may be called now."""

    tools: Sequence[Tool]
    mode: ToolMode = ToolMode.AUTO
    callable_names: frozenset[str]
    is_parallel: bool = True
    param: str = "tools"

    @property
    def callable(self) -> list[Tool]:
        """The tools that may be called, in the order of the request."""
        return [tool for tool in self.tools if tool.name in self.callable_names]

    @property
    def needs_grammar(self) -> bool:
        """Whether parsing what the model writes would not be enough."""
        return (
            self.mode is ToolMode.REQUIRED
            or not self.is_parallel
            or len(self.callable) < len(self.tools)
            or any(tool.is_strict for tool in self.tools)
        )
