"""The body of `POST /v1/batches`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from api.schemas.jobs import Metadata
from api.schemas.strict import IGNORE_UNKNOWN, Strict

# The routes that lines may name. workers/batches/endpoints.py knows how each is run.
BatchEndpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]
_UNITS = {"m": 60, "h": 3_600, "d": 86_400}
MIN_WINDOW_S, MAX_WINDOW_S = 300, 7 * 86_400
SHORT_WINDOW_S = 3_600  # below it lines run in the tier `flex`, else in `batch`


def window_seconds(window: str) -> int:
    """`5m` to `7d`. Raises ValueError."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})([mhd])", window)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not MIN_WINDOW_S <= seconds <= MAX_WINDOW_S:
        raise ValueError("Give a number of minutes, hours or days from 5m to 7d, such as 24h.")
    return seconds


def _checked_window(value: Any) -> Any:
    if isinstance(value, str):
        window_seconds(value)
    return value


class OutputExpiry(Strict):
    """How long output files are kept."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3_600, le=2_592_000)]


class CreateBatch(Strict):
    """What a client may ask for."""

    model_config = IGNORE_UNKNOWN

    input_file_id: Annotated[str, Field(max_length=64)]
    endpoint: BatchEndpoint
    completion_window: Annotated[str, BeforeValidator(_checked_window)]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiry | None = None

    @property
    def window_s(self) -> int:
        """Seconds."""
        return window_seconds(self.completion_window)

    @property
    def tier(self) -> str:
        """The service tier of its lines, which is what it is priced by."""
        return "batch" if self.window_s >= SHORT_WINDOW_S else "flex"
