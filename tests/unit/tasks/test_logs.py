"""What never gets into a log."""

from __future__ import annotations

import structlog

from tasks.logs import without_rows

CANARY = "kanarienvogel"
REFUSED = f"""new row violates check constraint "c"
DETAIL:  Failing row contains (1, {CANARY}
and a second line of {CANARY}).
CONTEXT:  COPY t, line 1: {CANARY}"""


def traceback_of(raise_: type[Exception]) -> str:
    try:
        try:
            raise ValueError(REFUSED)
        except ValueError as error:
            raise raise_(REFUSED) from error
    except Exception:
        event = structlog.processors.format_exc_info(None, "error", {"exc_info": True})
        return str(without_rows(None, "error", event)["exception"])


def test_a_traceback_names_the_rule_that_was_broken_and_quotes_no_row() -> None:
    text = traceback_of(OSError) + traceback_of(RuntimeError)

    assert CANARY not in text
    assert text.count("ValueError: new row violates check constraint") == 2
    assert text.count("The above exception was the direct cause") == 2
    assert "RuntimeError: new row violates check constraint" in text


def test_other_fields_are_treated_alike() -> None:
    event = {"event": "lost", "error": REFUSED, "num": 3}

    assert without_rows(None, "info", event) == {
        "event": "lost",
        "error": 'new row violates check constraint "c"',
        "num": 3,
    }
