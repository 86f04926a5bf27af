"""The purger: what is not to be stored or was deleted goes, and nothing holds up the rest."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from store.aside import FIRST_S
from tests.support.poison import refuse
from tests.support.roles import Connections
from tests.support.rows import Rows
from tests.support.services import Services
from workers.maintenance.purger import Purger

KEEP_S = 900.0


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def purger(services: Services, clock: _Clock) -> Purger:
    return Purger(services.redis_url, keep_s=KEEP_S, batch=3, clock=clock)


def _ended(rows: Rows, tenant: UUID, *, age_s: float = KEEP_S + 1, **columns: Any) -> UUID:
    """A job that ended so long ago; the columns as they are then."""
    job = rows.ended_job(tenant)
    changes = "".join(f", {name} = %({name})s" for name in columns)
    rows.connection.execute(
        "UPDATE jobs SET finished_at = now() - make_interval(secs => %(age_s)s)"
        f"{changes} WHERE id = %(id)s".encode(),
        {**columns, "id": job, "age_s": age_s},
    )
    return job


def _batch(rows: Rows, tenant: UUID, status: str, *, is_deleted: bool = False) -> UUID:
    row = rows.one(
        "INSERT INTO batches (id, tenant_id, api_key_id, endpoint, completion_window, service_tier,"
        " input_file_id, status, expires_at, deleted_at) VALUES (gen_random_uuid(), %s, 'k', '/',"
        " '24h', 'batch', gen_random_uuid(), %s, now() + interval '1 day',"
        " CASE WHEN %s THEN now() END) RETURNING id",
        tenant,
        status,
        is_deleted,
    )
    return UUID(str(row["id"]))


def _unstored(rows: Rows, tenant: UUID, num: int = 1, **columns: Any) -> list[UUID]:
    return [_ended(rows, tenant, is_stored=False, **columns) for _ in range(num)]


def _deleted(rows: Rows) -> set[UUID]:
    found = rows.connection.execute("SELECT id FROM jobs WHERE deleted_at IS NOT NULL").fetchall()
    return {row["id"] for row in found}


def _jobs(rows: Rows) -> set[UUID]:
    return {row["id"] for row in rows.connection.execute("SELECT id FROM jobs").fetchall()}


def _make_old(rows: Rows, *jobs: UUID) -> None:
    """Deleted longer ago than their rows are kept."""
    rows.connection.execute(
        "UPDATE jobs SET deleted_at = now() - interval '1 hour' WHERE id = ANY(%s)", (list(jobs),)
    )


def test_a_job_is_deleted_once_nobody_can_be_reading_it_and_if_it_was_not_to_be_stored(
    purger: Purger, roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant()
    [unstored] = _unstored(rows, tenant)
    [young] = _unstored(rows, tenant, age_s=KEEP_S - 60)
    stored = _ended(rows, tenant)

    has_more = purger.step(roles.worker)

    assert _deleted(rows) == {unstored}
    assert _jobs(rows) == {unstored, young, stored}
    assert not has_more


def test_an_emptied_row_goes_when_it_was_deleted_so_long_ago(
    purger: Purger, roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant()
    old, young, kept = (_ended(rows, tenant, age_s=10 * KEEP_S) for _ in range(3))
    rows.connection.execute("UPDATE jobs SET deleted_at = now() WHERE id = %s", (young,))
    _make_old(rows, old)

    purger.step(roles.worker)

    assert _jobs(rows) == {young, kept}


def test_what_a_batch_is_not_to_store_goes_when_the_batch_is_over_or_gone(
    purger: Purger, roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant()
    live, over = _batch(rows, tenant, "finalizing"), _batch(rows, tenant, "completed")
    needed = _unstored(rows, tenant, 4, batch_id=live)
    free = _unstored(rows, tenant, 4, batch_id=over)
    free += _unstored(rows, tenant, batch_id=uuid4())
    [young] = _unstored(rows, tenant, batch_id=over, age_s=1)

    has_more = [purger.step(roles.worker) for _ in range(2)]

    assert has_more == [True, False]
    assert _deleted(rows) == set(free)
    assert {*needed, young} <= _jobs(rows)


def test_all_batches_with_such_jobs_are_looked_at_in_turn(
    purger: Purger, roles: Connections, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.maintenance.purger.LOOKED_AT_A_STEP", 2)
    tenant = rows.tenant()
    batches = sorted(_batch(rows, tenant, "in_progress") for _ in range(5))
    jobs = [_unstored(rows, tenant, batch_id=batch)[0] for batch in batches]
    rows.connection.execute("UPDATE batches SET status = 'expired' WHERE id = %s", (batches[4],))

    for _ in range(2):
        purger.step(roles.worker)
    assert _deleted(rows) == set()
    purger.step(roles.worker)
    assert _deleted(rows) == {jobs[4]}

    rows.connection.execute("UPDATE batches SET status = 'expired' WHERE id = %s", (batches[0],))
    purger.step(roles.worker)
    assert _deleted(rows) == {jobs[0], jobs[4]}


def test_jobs_of_a_deleted_batch_go_some_a_step_and_its_row_with_the_last(
    purger: Purger, roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant()
    batch = _batch(rows, tenant, "cancelled", is_deleted=True)
    jobs = [_ended(rows, tenant, batch_id=batch) for _ in range(4)]
    elsewhere = _ended(rows, tenant)

    assert purger.step(roles.worker)
    assert len(_deleted(rows)) == 3
    assert not purger.step(roles.worker)

    assert _deleted(rows) == set(jobs)
    assert elsewhere in _jobs(rows)
    assert rows.connection.execute("SELECT FROM batches").fetchall() == []


def test_a_deleted_batch_that_goes_on_is_its_drivers(
    purger: Purger, roles: Connections, rows: Rows
) -> None:
    """It may have no job yet."""
    batch = _batch(rows, rows.tenant(), "cancelling", is_deleted=True)

    purger.step(roles.worker)

    assert rows.one("SELECT id FROM batches")["id"] == batch


def test_a_deleted_batch_with_an_open_job_waits_for_it_in_peace(
    purger: Purger, roles: Connections, rows: Rows
) -> None:
    tenant = rows.tenant()
    batch = _batch(rows, tenant, "cancelled", is_deleted=True)
    for _ in range(3):
        job = rows.job(tenant)
        rows.connection.execute("UPDATE jobs SET batch_id = %s WHERE id = %s", (batch, job))

    assert not purger.step(roles.worker)

    assert rows.one("SELECT id FROM batches")["id"] == batch


def test_jobs_that_can_not_be_deleted_hold_up_none_behind_them(
    purger: Purger, roles: Connections, rows: Rows
) -> None:
    """As many as a batch, of every kind: each is set aside and the others go."""
    tenant = rows.tenant()
    over = _batch(rows, tenant, "completed")
    gone = _batch(rows, tenant, "completed", is_deleted=True)
    kinds = [
        _unstored(rows, tenant, 5),
        _unstored(rows, tenant, 5, batch_id=over),
        [_ended(rows, tenant, batch_id=gone) for _ in range(5)],
    ]
    stuck = [job for jobs in kinds for job in jobs[:3]]
    for number, job in enumerate(stuck):
        refuse(roles.owner, "jobs", "id", job, name=f"refuse_{number}")

    for _ in range(3):
        purger.step(roles.worker)

    assert _deleted(rows) == {job for jobs in kinds for job in jobs[3:]}
    assert rows.one("SELECT id FROM batches WHERE deleted_at IS NOT NULL")["id"] == gone


def test_rows_that_can_not_be_removed_hold_up_none_behind_them_and_are_tried_again(
    purger: Purger, clock: _Clock, roles: Connections, rows: Rows
) -> None:
    jobs = [_ended(rows, rows.tenant()) for _ in range(5)]
    _make_old(rows, *jobs)
    for number, job in enumerate(jobs[:3]):
        refuse(roles.owner, "jobs", "id", job, name=f"refuse_{number}", event="DELETE")

    for _ in range(2):
        purger.step(roles.worker)
    assert _jobs(rows) == set(jobs[:3])

    for number in range(3):
        roles.owner.execute(f"DROP TRIGGER refuse_{number} ON jobs".encode())
    purger.step(roles.worker)
    assert _jobs(rows) == set(jobs[:3])
    clock.now += FIRST_S + 0.1
    purger.step(roles.worker)
    assert _jobs(rows) == set()


def test_deleted_batches_that_can_not_be_removed_hold_up_no_other(
    purger: Purger, roles: Connections, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.maintenance.purger.BATCHES_A_STEP", 2)
    tenant = rows.tenant()
    batches = sorted(_batch(rows, tenant, "failed", is_deleted=True) for _ in range(5))
    for number, batch in enumerate(batches[:2]):
        refuse(roles.owner, "batches", "id", batch, name=f"refuse_{number}", event="DELETE")
    unstored = _unstored(rows, tenant)

    rounds = [purger.step(roles.worker) for _ in range(3)]

    left = roles.owner.execute("SELECT id FROM batches ORDER BY id").fetchall()
    assert [row["id"] for row in left] == batches[:2]
    assert rounds == [True, True, False]
    assert _deleted(rows) == set(unstored)


def test_rows_stay_while_their_streams_can_not_be_dropped(roles: Connections, rows: Rows) -> None:
    job = _ended(rows, rows.tenant())
    _make_old(rows, job)

    assert not Purger("redis://127.0.0.1:1/0", keep_s=KEEP_S).step(roles.worker)

    assert _jobs(rows) == {job}
