"""Jobs whose clients left together with their API process."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import pytest
import redis

from tasks.keys import stream_channel
from tests.support.roles import Connections
from tests.support.rows import Rows
from tests.support.services import Services
from tests.support.waiting import wait_until
from workers.maintenance.deserter import GRACE_S, Deserter


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def client(services: Services) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(services.redis_url) as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def deserter(services: Services, clock: Clock) -> Deserter:
    return Deserter(services.redis_url, clock)


def _running(rows: Rows, *, on_disconnect: str = "cancel") -> UUID:
    job = rows.running_job(rows.tenant(), rows.worker())
    rows.connection.execute(
        "UPDATE jobs SET on_disconnect = %s WHERE id = %s", (on_disconnect, job)
    )
    return job


def _is_cancelled(rows: Rows, job: UUID) -> bool:
    return rows.of_job(job)["cancel_requested_at"] is not None


class Listener:
    """An API process that waits for a job, until it dies."""

    def __init__(self, client: redis.Redis, job: UUID) -> None:
        self._client, self._channel = client, stream_channel(job)
        self._pubsub = client.pubsub()  # type: ignore[no-untyped-call]
        self._pubsub.subscribe(self._channel)
        self._wait(1)

    def die(self) -> None:
        self._pubsub.close()
        self._wait(0)

    def _wait(self, num: int) -> None:
        wait_until(lambda: self._client.pubsub_numsub(self._channel)[0][1] == num)


def test_a_job_is_ended_some_time_after_its_last_listener(
    deserter: Deserter, clock: Clock, roles: Connections, rows: Rows, client: redis.Redis
) -> None:
    job, lasting = _running(rows), _running(rows, on_disconnect="continue")
    listeners = [Listener(client, job), Listener(client, lasting)]
    deserter.step(roles.worker)
    for listener in listeners:
        listener.die()

    deserter.step(roles.worker)
    clock.now += GRACE_S - 1
    deserter.step(roles.worker)
    assert not _is_cancelled(rows, job)
    clock.now += 1
    deserter.step(roles.worker)

    assert _is_cancelled(rows, job)
    assert rows.of_job(job)["cancel_by"] == "user"
    assert not _is_cancelled(rows, lasting)


def test_who_comes_back_keeps_the_job(
    deserter: Deserter, clock: Clock, roles: Connections, rows: Rows, client: redis.Redis
) -> None:
    job = _running(rows)
    listener = Listener(client, job)
    deserter.step(roles.worker)
    listener.die()
    deserter.step(roles.worker)
    clock.now += GRACE_S - 1
    back = Listener(client, job)
    deserter.step(roles.worker)
    back.die()
    deserter.step(roles.worker)
    clock.now += 2

    deserter.step(roles.worker)

    assert not _is_cancelled(rows, job)


def test_a_job_that_nobody_ever_listened_to_runs_on(
    deserter: Deserter, clock: Clock, roles: Connections, rows: Rows
) -> None:
    job = _running(rows)
    for _ in range(3):
        deserter.step(roles.worker)
        clock.now += GRACE_S

    assert not _is_cancelled(rows, job)


def test_while_redis_is_away_nobody_is_taken_for_gone(
    clock: Clock, roles: Connections, rows: Rows
) -> None:
    job = _running(rows)
    deserter = Deserter("redis://127.0.0.1:1/0", clock)
    deserter._heard.add(job)

    for _ in range(3):
        deserter.step(roles.worker)
        clock.now += GRACE_S

    assert not _is_cancelled(rows, job)


def test_a_job_that_can_not_be_cancelled_holds_up_no_other(
    deserter: Deserter, clock: Clock, client: redis.Redis, roles: Connections, rows: Rows
) -> None:
    jobs = [_running(rows) for _ in range(3)]
    listeners = [Listener(client, job) for job in jobs]
    deserter.step(roles.worker)
    for listener in listeners:
        listener.die()
    deserter.step(roles.worker)
    rows.refuse_updates("jobs", f"NEW.id = '{jobs[1]}'")

    clock.now += GRACE_S
    deserter.step(roles.worker)

    assert [_is_cancelled(rows, job) for job in jobs] == [True, False, True]
