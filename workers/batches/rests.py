"""How long a batch rests after a step, and how often it, or a line of it, is tried again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from store.batch_turns import BatchRow, Rest
from tasks.errors import InternalError, ServiceUnavailable

TURN_S = 0.5  # between looks for work while there is none
MAX_PAUSE_S = 2.0  # of a batch whose jobs run
FIRST_WAIT_S, MAX_WAIT_S = 1.0, 60.0  # of one that waits for credit or the like
MAX_TRIES = 10  # failed steps in a row: then the batch is given up, after a quarter of an hour
MAX_TRY_PAUSE_S = 300.0
PAST_WINDOW_S = 3_600.0  # for which a batch that is late still waits for its files
# A line that fails by no fault of its own that has a name, or by one that may pass.
MAX_LINE_TRIES = 12
MAX_WRITES = 24  # of one that is paid for: more than an hour
FIRST_RETRY_S, MAX_RETRY_S = 1.0, 300.0


def rest_of(batch: BatchRow, *, is_busy: bool, waits_for: dict[str, Any] | None) -> Rest:
    """Ever longer while nothing happens, so that waiting costs nothing."""
    if is_busy:
        return Rest(pause_s=0, waits_for=waits_for)
    num = batch["num_pauses"]
    first, longest = (FIRST_WAIT_S, MAX_WAIT_S) if waits_for else (TURN_S, MAX_PAUSE_S)
    pause_s = min(first * 2 ** min(num, 10), longest)
    return Rest(pause_s=pause_s, num_pauses=num + 1, waits_for=waits_for)


def after_failure(batch: BatchRow, error: Exception) -> Rest:
    """Contents may be away for hours: a batch waits for them until an hour after its window."""
    is_away = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
    cause = ServiceUnavailable() if is_away else InternalError()
    waits_for = {"code": cause.code, "message": "A step failed. It will be tried again."}
    if is_away and batch["remaining_s"] > -PAST_WINDOW_S:
        rest = rest_of(batch, is_busy=False, waits_for=waits_for)
        return replace(rest, num_tries=batch["num_tries"])
    num = batch["num_tries"]
    pause_s = min(2.0**num, MAX_TRY_PAUSE_S)
    return Rest(pause_s=pause_s, num_tries=num + 1, waits_for=waits_for)


def same_again(batch: BatchRow) -> Rest:
    """As if this step hadn't been."""
    return Rest(
        pause_s=TURN_S,
        num_pauses=batch["num_pauses"],
        num_tries=batch["num_tries"],
        waits_for=batch["waits_for"],
    )


def line_pause_s(num_tries: int) -> float:
    """Until a line is tried again that has been so often before."""
    return min(FIRST_RETRY_S * 2.0**num_tries, MAX_RETRY_S)


def is_last_write(line: dict[str, Any]) -> bool:
    """Whether a line that can't be shown now either is given up."""
    return bool(line["num_tries"] + 1 >= MAX_WRITES)
