"""Claims: a worker takes the best job that it can run, in one statement.

A ticket takes that of its tenant, or else the oldest of its lane; an idle worker the oldest of its
pool. Claimed are jobs of the models that the worker has loaded. Each model is looked for by itself,
in an index that knows models, so that nobody walks through a backlog that is not theirs.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from store.admission import FrozenPrices
from store.attempts import Checkpoint, Claimed
from store.pools import DictConnection
from tasks.queues import ServiceTier

# No job waits longer than a batch's seven days, so partitions of older months are left out of every
# look. The rest of the month is for clocks that were off.
_SINCE = "uuid7_floor(now() - interval '1 month')"

_CLAIM = f"""
, job AS (
    UPDATE jobs SET status = 'in_progress', attempt = attempt + 1, worker_id = %(worker_id)s,
        started_at = coalesce(started_at, now()), reason = NULL
    FROM best WHERE jobs.id = best.id AND jobs.id >= {_SINCE}
    RETURNING jobs.*
), attempt AS (
    INSERT INTO job_attempts (job_id, attempt, tenant_id, worker_id)
    SELECT id, attempt, tenant_id, worker_id FROM job
)
SELECT job.id, job.tenant_id, job.attempt, job.fail_count, job.max_fails, job.model,
    job.service_tier, job.input_tokens, job.max_output_tokens, job.price_version, job.input_price,
    job.cached_price, job.output_price, job.currency, job.num_choices,
    extract(epoch FROM job.deadline_at - now())::float AS remaining_s,
    payload.prompt_token_ids, payload.sampling, payload.grammar,
    previous.checkpoint_seq, previous.checkpoint_token_ids, previous.checkpoint_text,
    previous.checkpoint_splits
FROM job JOIN job_payloads payload ON payload.job_id = job.id AND payload.job_id >= {_SINCE}
LEFT JOIN LATERAL (
    SELECT checkpoint_seq, checkpoint_token_ids, checkpoint_text, checkpoint_splits
    FROM job_attempts a
    WHERE a.job_id = job.id AND a.job_id >= {_SINCE}  -- this attempt's own is not seen yet
    ORDER BY checkpoint_seq DESC LIMIT 1
) previous ON true
"""

_LEASE = """lease AS MATERIALIZED (
    SELECT models, refused FROM worker_leases
    WHERE worker_id = %(worker_id)s AND expires_at > now() AND NOT draining
)"""

_QUEUED = f"status = 'queued' AND id >= {_SINCE}"
_READY = "run_after <= now() AND deadline_at > now() AND cancel_requested_at IS NULL"


def _first(rows: str, order: str) -> str:
    """The first ready job of a range of rows. One index alone has the order of such a range: by
    `id` or `deadline_at` alone the planner may walk all jobs ever.
    """
    return f"FROM jobs WHERE {rows} AND {_QUEUED} AND {_READY} ORDER BY {order} LIMIT 1"


def _first_in_turn(kinds: str, first: str) -> str:
    """The first job of all `kinds`, which are in the order of their first jobs.

    That order was found without locks. Now kind by kind is tried: one row alone is locked, and what
    others lock meanwhile leaves nobody without a job while there is one. The join is a loop over
    the kinds, since its other side depends on them, and ends with the first job. What they say is
    a bound of the index there, which values of a plain join are not.
    """
    return f"""(
        SELECT job.id FROM ({kinds}) AS kind,
            LATERAL (SELECT id {first} FOR UPDATE SKIP LOCKED) AS job LIMIT 1)"""


def _of_served(first: str, place: str) -> str:
    """Of one model alone there is nothing to put in order."""
    return _first_in_turn(
        f"""SELECT * FROM served AS kind
            ORDER BY CASE WHEN is_one_of_many THEN (SELECT {place} {first}) END""",
        first,
    )


_LANE = "kind.pool, kind.service_tier, kind.lane"
_OWN = _first(  # from behind what is late
    f"""(pool, service_tier, lane, tenant_id, model, deadline_at)
        > ({_LANE}, kind.tenant_id, kind.model, now())
    AND (pool, service_tier, lane, tenant_id, model) <= ({_LANE}, kind.tenant_id, kind.model)""",
    "pool, service_tier, lane, tenant_id, model, deadline_at, id",
)
_OLDEST = _first(
    f"""(pool, service_tier, lane, model) >= ({_LANE}, kind.model)
    AND (pool, service_tier, lane, model) <= ({_LANE}, kind.model)""",
    "pool, service_tier, lane, model, id",
)

# The best queued job of the named job's tenant, pool and tier. If there is none, the ticket is a
# surplus one and serves the oldest job of its lane, whoever's that is: nobody waits behind tickets
# that stand for nothing, and any ticket of a lane makes up for a lost one. Nothing is looked for
# after the branch that finds a job.
# A named job whose model no worker has, since it retired or moved to another pool, counts as served
# unless the worker refuses it: it fails by its own ticket, instead of waiting for its deadline.
_CLAIM_TICKET = f"""
WITH {_LEASE}, ticket AS MATERIALIZED (
    SELECT pool, service_tier, lane, tenant_id, model AS named FROM jobs WHERE id = %(job_id)s
), served AS MATERIALIZED (
    SELECT ticket.*, model, count(*) OVER () > 1 AS is_one_of_many
    FROM ticket, lease, LATERAL (SELECT DISTINCT * FROM unnest(models || named)) AS loaded (model)
    WHERE NOT refused ? model AND (model = ANY (models) OR NOT EXISTS (
        SELECT FROM worker_leases other WHERE other.pool = ticket.pool
            AND other.expires_at > now() AND model = ANY (other.models)))
), best AS MATERIALIZED (
    SELECT id FROM {_of_served(_OWN, "(deadline_at, id)")} AS own
    UNION ALL
    SELECT id FROM {_of_served(_OLDEST, "id")} AS oldest
    LIMIT 1
){_CLAIM}"""

# Any queued job of the pool: what an idle worker looks for itself, tier by tier, and none after the
# first that has a job. Mostly one of the tier's oldest jobs will do: others that look at the same
# time hold one each.
_NUM_NEAREST = 10
_MINE = "model = ANY (models) AND NOT refused ? model"
_UP_TO_TIER = f"{_QUEUED} AND (pool, service_tier) <= (%(pool)s, tier.name)"
_OF_TIER = f"{_UP_TO_TIER} AND (pool, service_tier) >= (%(pool)s, tier.name)"
_NEAREST = _first_in_turn(
    f"""SELECT id FROM lease, (SELECT id, model FROM jobs WHERE {_OF_TIER}
            ORDER BY pool, service_tier, id LIMIT {_NUM_NEAREST}) AS nearest
        WHERE {_MINE} ORDER BY id""",
    f"FROM jobs WHERE jobs.id = kind.id AND {_QUEUED} AND {_READY}",
)
# Or else the oldest of all lanes and models. `heads` are the first jobs of each, served or not:
# from one to the next is a step, however many jobs lie between.
_HEAD = f"SELECT pool, service_tier, lane, model, id, {_READY} AS is_ready FROM jobs"
_FARTHER = _first_in_turn(
    f"""WITH RECURSIVE heads AS (
            ({_HEAD} WHERE {_OF_TIER} ORDER BY pool, service_tier, lane, model, id LIMIT 1)
            UNION ALL
            SELECT next.* FROM heads, LATERAL (
                {_HEAD} WHERE {_UP_TO_TIER} AND (pool, service_tier, lane, model)
                    > (heads.pool, heads.service_tier, heads.lane, heads.model)
                ORDER BY pool, service_tier, lane, model, id LIMIT 1) AS next
        )
        SELECT kind.* FROM heads AS kind, lease WHERE {_MINE}
        ORDER BY CASE WHEN is_ready THEN id ELSE (SELECT id {_OLDEST}) END""",
    _OLDEST,
)
_CLAIM_ANY = f"""
WITH {_LEASE}, best AS MATERIALIZED (
    SELECT oldest.id FROM unnest(%(tiers)s::text[]) AS tier (name), LATERAL (
        SELECT id FROM {_NEAREST} AS nearest UNION ALL SELECT id FROM {_FARTHER} AS farther
        LIMIT 1) AS oldest
    LIMIT 1
){_CLAIM}"""


def claim_ticket(connection: DictConnection, worker_id: UUID, job_id: UUID) -> Claimed | None:
    """Take the best job of the ticket's tenant, or else the oldest of its lane.

    None: nothing in the lane is ready, or the lease is over.
    """
    parameters = {"worker_id": worker_id, "job_id": job_id}
    return _claimed(connection.execute(_CLAIM_TICKET.encode(), parameters).fetchone())


def claim_any(connection: DictConnection, worker_id: UUID, pool: str) -> Claimed | None:
    """Take any job of the pool: for the idle worker, whose hints may be lost."""
    parameters = {"worker_id": worker_id, "pool": pool, "tiers": list(ServiceTier)}
    return _claimed(connection.execute(_CLAIM_ANY.encode(), parameters).fetchone())


def _claimed(row: dict[str, Any] | None) -> Claimed | None:
    if row is None:
        return None
    return Claimed(
        job_id=row["id"],
        tenant_id=row["tenant_id"],
        attempt=row["attempt"],
        fail_count=row["fail_count"],
        max_fails=row["max_fails"],
        model=row["model"],
        service_tier=row["service_tier"],
        input_tokens=row["input_tokens"],
        max_output_tokens=row["max_output_tokens"],
        prices=FrozenPrices(
            version=row["price_version"],
            input_micros=row["input_price"],
            cached_micros=row["cached_price"],
            output_micros=row["output_price"],
            currency=row["currency"],
        ),
        remaining_s=row["remaining_s"],
        prompt_token_ids=row["prompt_token_ids"],
        sampling=row["sampling"],
        grammar=row["grammar"],
        num_choices=row["num_choices"],
        checkpoint=_checkpoint(row),
    )


def _checkpoint(row: dict[str, Any]) -> Checkpoint:
    splits = row["checkpoint_splits"]
    return Checkpoint(
        seq=row["checkpoint_seq"] or 0,
        token_ids=row["checkpoint_token_ids"] or b"",
        text=row["checkpoint_text"] or "",
        splits=None if splits is None else tuple((*split,) for split in splits),
    )
