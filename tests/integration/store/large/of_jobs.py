"""Cases of jobs as the API and workers handle them. Names: a function, and what is special."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from benchmarks.big_tables import NUM_LIGHT, POOL
from store import (
    admission,
    attempts,
    claiming,
    deletion,
    estimates,
    hints,
    job_usage,
    jobs,
    leases,
    outcomes,
    pools,
    rate_limits,
    reaping,
    reservations,
    responses,
    tenants,
)
from store.job_usage import Mark
from store.leases import HeldJob
from tasks.jobs import JobStatus
from tasks.queues import NUM_LANES, lane_for
from tests.integration.store.large.world import Call, World
from tests.integration.store.writes import finish_of, lease, requeue_of, running_checkpoint

DAY = timedelta(days=1)
NUM_DUE = 100


def _claim_own(world: World) -> Call:
    """By a ticket of the tenant with the long queue."""
    return world.works(claiming.claim_ticket, world.worker_id, world.id_of("queued"))


def _claim_light(world: World) -> Call:
    """By tickets of tenants with one job."""
    return world.works_each(
        lambda worker, job: claiming.claim_ticket(worker, world.worker_id, job), world.light_jobs()
    )


def _claim_surplus(world: World) -> Call:
    """By a ticket whose tenant has nothing that waits."""
    [job, *_] = world.light_jobs()
    world.roles.owner.execute(
        "UPDATE jobs SET status = 'cancelled', finished_at = now() WHERE id = %s", (job,)
    )
    return world.works(claiming.claim_ticket, world.worker_id, job)


def _refusing(world: World) -> UUID:
    """A worker that can't serve the flood's model. Some jobs, the flood's last ones, it can."""
    world.roles.owner.execute(
        "UPDATE jobs SET model = 'other' WHERE id = ANY(%s)", (world.ids_of("queued"),)
    )
    return world.new_worker("other", refused=["demo"])


def _claim_own_of_refusing(world: World) -> Call:
    return world.works(claiming.claim_ticket, _refusing(world), world.id_of("queued"))


def _claim_surplus_of_refusing(world: World) -> Call:
    """By a ticket of a tenant in the flood's lane that has nothing for this worker."""
    [job, *_] = world.light_jobs()
    world.roles.owner.execute(
        "UPDATE jobs SET lane = %s WHERE id = %s", (lane_for(world.flood), job)
    )
    return world.works(claiming.claim_ticket, _refusing(world), job)


def _claim_any_of_refusing(world: World) -> Call:
    return world.works(claiming.claim_any, _refusing(world), POOL)


def _finish(world: World) -> Call:
    ends = [finish_of(job, world.worker_id) for job in world.running()]
    return world.works_each(attempts.finish, ends)


def _requeue(world: World) -> Call:
    return world.works_each(
        attempts.requeue, [requeue_of(job, world.worker_id) for job in world.running()]
    )


def _checkpoint(world: World) -> Call:
    running = [running_checkpoint(job, "four") for job in world.running()]
    return world.works(attempts.save_checkpoints, running)


def _disown(world: World) -> Call:
    held = [HeldJob(job.job_id, job.attempt, False) for job in world.running()]
    return world.works_each(lambda worker, job: leases.disown(worker, world.worker_id, job), held)


def _beat(world: World) -> Call:
    return world.works(leases.beat, lease(world.roles.worker), num_running=0)


def _reap_lost(world: World) -> Call:
    """Jobs of a worker that is gone."""
    world.running()
    world.roles.owner.execute(
        "UPDATE worker_leases SET expires_at = now() WHERE worker_id = %s", (world.worker_id,)
    )
    world.worker_id = world.new_worker()
    return world.works(reaping.reap_lost)


def _reap_waiting(world: World) -> Call:
    world.roles.owner.execute(
        "UPDATE jobs SET cancel_requested_at = now(), cancel_by = 'user' WHERE id = ANY(%s)",
        (world.ids_of("queued"),),
    )
    return world.works(reaping.reap_waiting)


def _settle(world: World) -> Call:
    for job in world.running():
        attempts.finish(world.roles.worker, finish_of(job, world.worker_id))
    return world.bills(outcomes.settle, limit=1)


def _settle_named(world: World) -> Call:
    """As a hint says, behind others that wait."""
    ids = [job.job_id for job in world.running()]
    world.roles.owner.execute(
        "UPDATE job_outcomes SET settled_at = NULL WHERE job_id IN (SELECT job_id FROM"
        " job_outcomes WHERE settled_at IS NOT NULL LIMIT %s)",
        (world.tables.num_finished // 2,),
    )
    return world.bills(outcomes.settle, job_ids=ids, limit=10)


def _cancel(world: World) -> Call:
    ids = iter(world.ids_of("queued"))
    return world.asks_each(lambda pool: jobs.request_cancel(pool, world.flood, next(ids)))


def _delete(world: World) -> Call:
    ids = iter(world.ids_of("finished"))
    return world.asks_each(lambda pool: deletion.delete_job(pool, world.flood, next(ids)))


def _first_use(world: World) -> Call:
    key = str(world.id_of("queued"))
    job = world.new_job(idempotency_key=key, request_hash=b"")
    return world.asks(admission.find_first_use, job)


def _admit(world: World, **changes: str) -> Call:
    return world.asks_each(lambda pool: admission.admit(pool, world.new_job(**changes)))


def _admit_again(world: World) -> Call:
    job = world.new_job(idempotency_key=str(world.id_of("queued")), request_hash=b"")
    return world.asks(admission.admit, job)


def _remove(world: World) -> Call:
    ids = world.ids_of("finished")
    return world.works_each(lambda worker, job: deletion.remove_jobs(worker, [job]), ids)


def _leave_unstored(world: World) -> None:
    """Jobs that are not to be stored, of a batch that goes on: they wait for it, and are many."""
    world.roles.owner.execute(
        "UPDATE jobs SET is_stored = false, batch_id = %s WHERE is_stored AND id = ANY(ARRAY("
        " SELECT id FROM jobs WHERE id > uuid7_floor(now() - interval '100 days')"
        " AND finished_at IS NOT NULL ORDER BY id LIMIT %s))",
        (world.around.batch, world.tables.num_finished // 100),
    )


def _unstored(world: World) -> Call:
    _leave_unstored(world)
    return world.works(deletion.unstored_jobs, keep_s=900, batch=10)


def _batches_with_unstored(world: World) -> Call:
    _leave_unstored(world)
    return world.works(deletion.batches_with_unstored, after=UUID(int=0), batch=10)


def _removable(world: World) -> Call:
    """Beside them, and beside very many that were deleted just now."""
    _leave_unstored(world)
    world.roles.owner.execute(
        "UPDATE jobs SET deleted_at = now() WHERE deleted_at IS NULL AND id = ANY(ARRAY("
        " SELECT id FROM jobs WHERE id > uuid7_floor(now() - interval '200 days')"
        " AND finished_at IS NOT NULL ORDER BY id LIMIT %s))",
        (world.tables.num_finished // 100,),
    )
    return world.works(deletion.removable_jobs, after_s=86_400, batch=10)


CASES = {
    "admission.admit": _admit,
    "admission.admit with a new key": lambda w: _admit(w, idempotency_key=str(uuid4())),
    "admission.admit with a used key": _admit_again,
    "admission.find_first_try": lambda w: w.asks(admission.find_first_try, w.new_job()),
    "admission.find_first_try of what many sent": lambda w: w.asks(
        admission.find_first_try, w.new_job(request_hash=b"often")
    ),
    "admission.find_first_try of what another key sent": lambda w: w.asks(
        admission.find_first_try, w.new_job(request_hash=b"often", api_key_id="other")
    ),
    "admission.find_first_use": _first_use,
    "claiming.claim_ticket": _claim_own,
    "claiming.claim_ticket of a light tenant": _claim_light,
    "claiming.claim_ticket by a surplus one": _claim_surplus,
    "claiming.claim_ticket of a worker that refuses the flood's model": _claim_own_of_refusing,
    "claiming.claim_ticket by a surplus one of such a worker": _claim_surplus_of_refusing,
    "claiming.claim_any of such a worker": _claim_any_of_refusing,
    "claiming.claim_any": lambda w: w.works(claiming.claim_any, w.worker_id, POOL),
    "claiming.claim_any of an empty pool": lambda w: w.works(
        claiming.claim_any, w.worker_id, "empty"
    ),
    "attempts.save_checkpoints": _checkpoint,
    "attempts.finish": _finish,
    "attempts.requeue": _requeue,
    "attempts.cancel_asked_by": lambda w: w.works(attempts.cancel_asked_by, w.id_of("queued")),
    "attempts.ask_cancel": lambda w: w.works(attempts.ask_cancel, w.id_of("queued"), by="user"),
    "leases.register": lambda w: w.works(lease),
    "leases.beat": _beat,
    "leases.held_jobs": lambda w: w.works(leases.held_jobs, w.worker_id),
    "leases.disown": _disown,
    "leases.set_draining": lambda w: w.works(leases.set_draining, lease(w.roles.worker)),
    "leases.give_up": lambda w: w.works(leases.give_up, lease(w.roles.worker)),
    "leases.expire_process": lambda w: w.works(leases.expire_process, hostname="gone", pid=1),
    "leases.list_live": lambda w: w.works(leases.list_live),
    "leases.live_workers": lambda w: w.asks(leases.live_workers),
    "reaping.reap_lost": _reap_lost,
    "reaping.reap_lost with nothing lost": lambda w: w.works(reaping.reap_lost),
    "reaping.reap_waiting": _reap_waiting,
    "reaping.jobs_that_need_clients": lambda w: w.works(reaping.jobs_that_need_clients, limit=500),
    "reaping.dead_leases": lambda w: w.works(reaping.dead_leases),
    "reaping.forget_leases": lambda w: w.works(reaping.forget_leases, [uuid4()]),
    "reservations.release_orphans": lambda w: w.bills(reservations.release_orphans, limit=100),
    "outcomes.settle": _settle,
    "outcomes.settle of named jobs": _settle_named,
    "outcomes.due": lambda w: w.bills(outcomes.due, limit=NUM_DUE),
    "outcomes.note_not_settled": lambda w: w.bills(
        outcomes.note_not_settled, w.id_of("finished"), "why"
    ),
    "outcomes.oldest_unsettled": lambda w: w.works(outcomes.oldest_unsettled, older_than_s=10),
    "rate_limits.unused_tokens": lambda w: w.bills(rate_limits.unused_tokens, w.ids_of("finished")),
    "hints.next_tenant": lambda w: w.works(hints.next_tenant, hints.NOBODY),
    "hints.rehint": lambda w: w.works(hints.rehint, start=w.tables.light[0]),
    "hints.give_back": lambda w: w.works(hints.give_back, w.ids_of("queued")),
    "jobs.get_job": lambda w: w.asks(jobs.get_job, w.flood, w.id_of("finished")),
    "jobs.get_job_with_request": lambda w: w.asks(
        jobs.get_job_with_request, w.flood, w.id_of("queued")
    ),
    "jobs.list_jobs": lambda w: w.asks(jobs.list_jobs, w.flood, limit=20),
    "jobs.list_jobs behind one": lambda w: w.asks(
        jobs.list_jobs, w.flood, after=w.id_of("finished"), limit=20
    ),
    **{
        f"jobs.list_jobs that are {status}": lambda w, status=status: w.asks(
            jobs.list_jobs, w.flood, status=status
        )
        for status in JobStatus
    },
    "jobs.queue_position": lambda w: w.asks(jobs.queue_position, w.flood, w.id_of("queued")),
    "jobs.request_cancel": _cancel,
    "jobs.finished_jobs": lambda w: w.asks(jobs.finished_jobs, w.ids_of("finished")),
    "jobs.has_event_log": lambda w: w.asks(jobs.has_event_log, w.flood, w.id_of("finished")),
    "jobs.read_event_log": lambda w: w.asks(
        jobs.read_event_log, w.flood, w.id_of("finished"), 0, 100
    ),
    "jobs.read_logprobs": lambda w: w.asks_each(
        lambda pool: anext(jobs.read_logprobs(pool, w.flood, w.id_of("finished"), 0), None)
    ),
    "responses.conversation": lambda w: w.asks(
        responses.conversation, w.flood, w.id_of("finished")
    ),
    "responses.named_responses": lambda w: w.asks(
        responses.named_responses, w.flood, dict.fromkeys(w.ids_of("finished")[:100], True)
    ),
    "deletion.delete_job": _delete,
    "deletion.is_of_live_batch": lambda w: w.asks(
        deletion.is_of_live_batch, w.flood, w.id_of("finished")
    ),
    "deletion.unstored_jobs": _unstored,
    "deletion.unstored_jobs of a batch": lambda w: w.works(
        deletion.unstored_jobs, keep_s=900, batch=10, batch_id=w.id_of("batches")
    ),
    "deletion.batches_with_unstored": _batches_with_unstored,
    "deletion.delete_jobs": lambda w: w.works_each(
        lambda worker, job: deletion.delete_jobs(worker, [job]), w.ids_of("finished")
    ),
    "deletion.removable_jobs": _removable,
    "deletion.remove_jobs": _remove,
    "estimates.output_quantiles": lambda w: w.asks(
        estimates.output_quantiles, w.tables.light[0], "demo"
    ),
    "estimates.output_quantiles of one's own": lambda w: w.asks(
        estimates.output_quantiles, w.flood, "demo"
    ),
    "job_usage.list_job_usage": lambda w: w.asks(
        job_usage.list_job_usage,
        w.flood,
        after=Mark(datetime.now(UTC) - 30 * DAY),
        end=datetime.now(UTC),
        limit=100,
    ),
    "job_usage.list_settled": lambda w: w.asks(job_usage.list_settled, w.flood, after=0, limit=100),
    "job_usage.find_job_usage": lambda w: w.asks(
        job_usage.find_job_usage, w.flood, w.id_of("finished")
    ),
    "pools.postgres_now": lambda w: w.asks(pools.postgres_now, w.flood),
    "tenants.find_api_key": lambda w: w.asks(tenants.find_api_key, "key1"),
}

# Rows that a statement looks at by its own bound, and the pages that all of them may take.
BOUNDS = {
    # 100 of them, each looked for in three partitioned tables.
    "responses.named_responses": 3_000,
    # The latest rows of all, or of the tenant, some 40 a page.
    "estimates.output_quantiles": 50_000 // 20,
    "estimates.output_quantiles of one's own": 20_000 // 20,
    # The first of the flood's lane and all of the light tenants, and those from a tenant on; the
    # third part is for finding the lanes and for the marks.
    "hints.rehint": 3 * (hints.MAX_SEEN + NUM_LIGHT),
}

# The same where rows lie on a page each, as among millions alone. In smaller tables that would be
# more than all pages of the backlog.
BOUNDS_AMONG_MILLIONS = {
    # The first of each lane and the first from a tenant on.
    "hints.rehint": 2 * hints.MAX_SEEN * NUM_LANES,
    "jobs.queue_position": jobs.MAX_POSITION * 3,
    "reservations.release_orphans": 2 * 100 * 40,  # each is looked up in all partitions
    "reaping.reap_lost": reaping.MAX_JOBS * 60,
    "outcomes.due": 2 * NUM_DUE,
}
