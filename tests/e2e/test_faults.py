"""Three faults from the first day: a worker killed while it streams, Redis emptied, both."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from tests.e2e.streams import Reader, read_beside
from tests.e2e.test_job_path import submit
from tests.support.cluster import Cluster
from tests.support.member import Member, Tenant
from workers.inference.engine.stub import expected_text

pytestmark = pytest.mark.usefixtures("mended")

NUM_TOKENS = 600  # 3 s of the stub
RECOVERY_S = 12.0  # lease 8, reaper 1, hint and claim


class Follower:
    """A job and a reader of its events on a thread of its own."""

    def __init__(self, cluster: Cluster, tenant: Tenant, seed: int) -> None:
        self._http = cluster.http(tenant)
        self.seed = seed
        self.job_id = submit(self._http, seed=seed, max_tokens=NUM_TOKENS)
        self.reader = Reader(self._http, self.job_id)
        self._reading = read_beside(self.reader)

    def finish(self) -> None:
        self._reading.result(timeout=60)
        self._http.close()


def worker_of(cluster: Cluster, job_id: str) -> Member:
    """The worker that runs a job."""
    (row,) = cluster.query(
        "SELECT l.pid FROM jobs j JOIN worker_leases l USING (worker_id) WHERE j.id = %s",
        (job_id.removeprefix("job_"),),
    )
    return next(worker for worker in cluster.workers if worker.pid == row["pid"])


def least_far(followers: Sequence[Follower]) -> Follower:
    """Whose job surely runs on, though another's may have ended on a busy machine."""
    return min(followers, key=lambda follower: follower.reader.last_seq)


def assert_whole(cluster: Cluster, follower: Follower) -> None:
    """The reader, the store and the oracle agree, and there is one bill."""
    reader = follower.reader
    assert reader.job is not None
    assert reader.job["status"] == "incomplete", reader.job
    assert reader.text == expected_text(follower.seed, NUM_TOKENS)
    assert reader.text == reader.job["output"][0]["text"]
    bills = "SELECT count(*)::int AS n FROM ledger_entries WHERE job_id = %s"
    job_id = follower.job_id.removeprefix("job_")
    cluster.wait_until(lambda: cluster.query(bills, (job_id,)) == [{"n": 1}], what="one bill")
    assert cluster.query("SELECT output_tokens FROM usage WHERE job_id = %s", (job_id,)) == [
        {"output_tokens": NUM_TOKENS}
    ]


def test_job_of_a_killed_worker_is_finished_by_another_and_its_stream_goes_on(
    cluster: Cluster, tenant: Tenant
) -> None:
    followers = [Follower(cluster, tenant, seed) for seed in range(4)]
    cluster.wait_until(lambda: all(f.reader.last_seq > 20 for f in followers))
    struck = least_far(followers)
    victim = worker_of(cluster, struck.job_id)

    victim.kill()
    killed_at = time.monotonic()
    seen = struck.reader.last_seq
    cluster.wait_until(
        lambda: struck.reader.last_seq > seen + 5, timeout_s=30, what="the next token"
    )
    recovery_s = time.monotonic() - killed_at
    for follower in followers:
        follower.finish()

    assert recovery_s < RECOVERY_S
    assert struck.reader.attempts == [1, 2]
    for follower in followers:
        assert_whole(cluster, follower)
        assert follower.reader.seqs == list(range(1, len(follower.reader.seqs) + 1))


def test_redis_restarted_empty_loses_no_job_and_no_token(cluster: Cluster, tenant: Tenant) -> None:
    running = [Follower(cluster, tenant, seed) for seed in range(4)]
    cluster.wait_until(lambda: all(f.reader.last_seq > 20 for f in running))
    with cluster.http(tenant) as http:
        # More than there are slots, so that most are in the queue when it vanishes.
        queued = [submit(http, seed=n, max_tokens=200) for n in range(100)]

        cluster.restart_redis_empty()

        for follower in running:
            follower.finish()
        ended = [http.get(f"/v1/jobs/{job}", params={"wait_s": 60}).json() for job in queued]
    for follower in running:
        assert_whole(cluster, follower)
    assert {job["status"] for job in ended} == {"incomplete"}
    assert [job["output"][0]["text"] for job in ended] == [
        expected_text(n, 200) for n in range(100)
    ]


def test_worker_killed_and_redis_emptied_together_keep_the_text_exact(
    cluster: Cluster, tenant: Tenant
) -> None:
    followers = [Follower(cluster, tenant, seed) for seed in range(3)]
    cluster.wait_until(lambda: all(f.reader.last_seq > 250 for f in followers))

    worker_of(cluster, least_far(followers).job_id).kill()
    cluster.restart_redis_empty()
    for follower in followers:
        follower.finish()

    for follower in followers:
        assert_whole(cluster, follower)


def test_job_is_accepted_while_redis_is_away(cluster: Cluster, tenant: Tenant) -> None:
    cluster.kill_redis()

    with cluster.http(tenant) as http:
        job_id = submit(http, seed=1, max_tokens=20)
        cluster.start_redis()
        job = http.get(f"/v1/jobs/{job_id}", params={"wait_s": 60}).json()

    assert job["status"] == "incomplete"
    assert job["output"][0]["text"] == expected_text(1, 20)


def test_paused_worker_that_wakes_up_harms_nothing(cluster: Cluster, tenant: Tenant) -> None:
    follower = Follower(cluster, tenant, 1)
    cluster.wait_until(lambda: follower.reader.last_seq > 20)
    zombie = worker_of(cluster, follower.job_id)

    zombie.pause()
    cluster.wait_until(lambda: follower.reader.attempts == [1, 2], timeout_s=30)
    zombie.resume()
    follower.finish()

    assert_whole(cluster, follower)
