"""The table of endings is part of the wire format: changing a row takes two releases."""

from __future__ import annotations

from tasks import jobs
from tasks.jobs import ENDINGS, TERMINAL, Ending, JobStatus, cancelled_by

TABLE = {
    ("completed", None, False, "tenant"),
    ("incomplete", "max_output_tokens", False, "tenant"),
    ("incomplete", "budget_exhausted", False, "tenant"),
    ("incomplete", "deadline_exceeded", False, "tenant"),
    ("failed", "deadline_exceeded", True, "nobody"),
    ("failed", "worker_lost", True, "platform"),
    ("failed", "engine_error", True, "platform"),
    ("cancelled", "cancelled_by_user", False, "tenant"),
    ("cancelled", "cancelled_by_operator", True, "platform"),
}


def test_endings_are_those_of_the_wire_format() -> None:
    assert {(e.status, e.reason, e.is_retryable, e.payer) for e in ENDINGS} == TABLE
    assert len(ENDINGS) == len(TABLE)


def test_every_ending_defined_is_in_the_table() -> None:
    defined = {value for value in vars(jobs).values() if isinstance(value, Ending)}

    assert defined == set(ENDINGS)


def test_every_ending_is_terminal_and_every_terminal_status_has_one() -> None:
    assert {ending.status for ending in ENDINGS} == TERMINAL
    assert set(JobStatus) - TERMINAL == {JobStatus.QUEUED, JobStatus.IN_PROGRESS}


def test_tenant_never_pays_for_a_failed_job() -> None:
    assert all(e.payer != "tenant" for e in ENDINGS if e.status == JobStatus.FAILED)


def test_cancel_ends_by_who_asked() -> None:
    assert cancelled_by("user").reason == "cancelled_by_user"
    assert cancelled_by("operator").reason == "cancelled_by_operator"
