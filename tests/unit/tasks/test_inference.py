"""Tickets and the ids Celery knows them by."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from uuid import UUID

import pytest

from tasks.ids import uuid7
from tasks.inference import Hint, job_of_task_id
from tasks.queues import ServiceTier

OTHER = UUID("8d0a37f1-5c52-4d3c-9f0e-0a4c1f6f2b11")  # of version 4


def hint(job_id: UUID, hint_count: int) -> Hint:
    return Hint(job_id, "default", ServiceTier.DEFAULT, 3, hint_count)


def test_each_hint_of_a_job_has_an_id_of_its_own() -> None:
    job_id = uuid7()

    ids = {hint(job_id, count).task_id for count in (1, 2, 10)}

    assert ids == {f"{job_id.hex}.1", f"{job_id.hex}.2", f"{job_id.hex}.10"}


def test_job_is_read_back_from_a_task_id() -> None:
    job_id = uuid7()

    assert job_of_task_id(hint(job_id, 7).task_id) == job_id


@pytest.mark.parametrize(
    "task_id", ["", ".", "x.1", str(OTHER), OTHER.hex, f"{OTHER}.1", f"{OTHER.hex}."]
)
def test_ids_of_other_tasks_name_no_job(task_id: str) -> None:
    assert job_of_task_id(task_id) is None


def test_hint_can_not_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        hint(uuid7(), 1).lane = 4  # type: ignore[misc]
