"""What request bodies have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """No unknown fields, no conversions, no NaN; mistakes are reported without the input."""

    # A float field takes 1 as well as 1.0 even so.
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )


# For subclasses of the bodies that other people's clients send: what we don't know is ignored, as
# OpenAI does, and named in a header of the answer.
IGNORE_UNKNOWN = ConfigDict(extra="ignore")


def unknown_fields(model: type[BaseModel], body: Mapping[str, Any]) -> list[str]:
    """Top-level names of a body that its schema doesn't know, sorted."""
    known = {field.alias or name for name, field in model.model_fields.items()}
    return sorted(body.keys() - known)
