"""What a client asks to have generated, in no dialect: every route makes one of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from api.grammars.formats import Grammar
from api.prompts.prompt import Prompt
from api.tools.request import ToolUse
from tasks.jobs import Dialect, OnDisconnect


@dataclass(frozen=True, slots=True)
class TokenLimit:
    """The most tokens a choice may have, and what the client called it."""

    value: int | None
    param: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One request. Its fields are checked as far as that goes without knowing the model."""

    dialect: Dialect
    path: str  # of the route: part of the request's hash, since others may take the same body
    model: str
    prompt: Prompt
    prompt_param: str
    sampling: Mapping[str, Any]  # by the names of the engine's SamplingParams
    token_limit: TokenLimit
    num_choices: int = 1
    form: Grammar | None = None  # of the whole answer
    tools: ToolUse | None = None
    truncates_prompt: bool = False  # drop the oldest turns of a conversation that is too long
    service_tier: str = "auto"
    deadline_s: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    end_user: str | None = None
    is_background: bool = False
    is_stored: bool = True  # False: nothing is kept once the client has had the answer
    on_disconnect: OnDisconnect | None = None  # None: what the key or the dialect has as default
