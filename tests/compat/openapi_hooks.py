"""For schemathesis: random bodies name a model that exists, or all would end at its absence."""

from __future__ import annotations

from typing import Any

import schemathesis

MAX_TOKENS = 16
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Only what is a name and a number stays one: what is invalid is to stay so."""
    if not isinstance(body, dict):
        return body
    if isinstance(body.get("model"), str) and 1 <= len(body["model"]) <= 128:
        body["model"] = "demo"
    for name in _LIMITS:
        if type(body.get(name)) is int and 1 <= body[name] < 2**31:
            body[name] = min(body[name], MAX_TOKENS)
    return body
