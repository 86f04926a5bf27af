"""Rows for tests of what happens to jobs after admission.

Tenants, workers, jobs, attempts and outcomes, written by the owner's connection, in the states a
test begins with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

from billing.pricing import worst_case_micros
from store.admission import FrozenPrices
from store.pools import DictConnection
from store.tenants import create_tenant
from tasks.ids import uuid7
from tasks.token_ids import pack_token_ids


def frozen_prices(input_micros: int, cached_micros: int, output_micros: int) -> FrozenPrices:
    """As a job carries them."""
    return FrozenPrices(
        version=1,
        input_micros=input_micros,
        cached_micros=cached_micros,
        output_micros=output_micros,
        currency="USD",
    )


PRICES = frozen_prices(1_000_000, 250_000, 2_000_000)  # a micro a token and two

_JOB = """
INSERT INTO jobs (id, tenant_id, api_key_id, model, model_requested, pool, service_tier, lane,
    status, reason, attempt, fail_count, max_fails, worker_id, run_after, deadline_at, hinted_at,
    hint_count, cancel_requested_at, cancel_by, input_tokens, max_output_tokens, price_version,
    input_price, cached_price, output_price, currency, request_hash, started_at, finished_at,
    num_choices)
VALUES (%(id)s, %(tenant_id)s, 'key', 'demo', 'demo', %(pool)s, %(tier)s, 3, %(status)s, NULL,
    %(attempt)s, %(fail_count)s, 3, %(worker_id)s, now() + make_interval(secs => %(run_after_s)s),
    now() + make_interval(secs => %(deadline_s)s), now() - make_interval(secs => %(hinted_ago_s)s),
    %(hint_count)s, CASE WHEN %(cancel_by)s::text IS NOT NULL THEN now() END, %(cancel_by)s,
    %(input_tokens)s, %(max_output_tokens)s, %(version)s, %(input_price)s, %(cached_price)s,
    %(output_price)s, 'USD', '', CASE WHEN %(attempt)s > 0 THEN now() END,
    CASE WHEN %(is_finished)s THEN now() END, %(num_choices)s)
"""

_ATTEMPT = """
INSERT INTO job_attempts (job_id, attempt, tenant_id, worker_id, checkpoint_seq,
    checkpoint_token_ids, checkpoint_text, checkpoint_splits, output_tokens, ended_at, outcome)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, CASE WHEN %s::text IS NOT NULL THEN now() END, %s)
"""

_OUTCOME = """
INSERT INTO job_outcomes (job_id, tenant_id, api_key_id, model, service_tier, status, payer,
    attempt, input_tokens, cached_tokens, output_tokens, price_version, input_price, cached_price,
    output_price, currency)
SELECT id, tenant_id, api_key_id, model, service_tier, status, %(payer)s, attempt, input_tokens,
    %(cached_tokens)s, %(output_tokens)s, price_version, input_price, cached_price, output_price,
    currency
FROM jobs WHERE id = %(job_id)s
"""


@dataclass(frozen=True, slots=True)
class Rows:
    """Writes rows over the owner's connection."""

    connection: DictConnection

    def tenant(self, *, credit_micros: int = 1_000_000_000) -> UUID:
        name = f"tenant-{uuid4().hex[:12]}"
        return create_tenant(self.connection, name=name, credit_micros=credit_micros)

    def worker(self, *, expires_s: float = 8.0, slots: int = 4, pool: str = "demo") -> UUID:
        worker_id = uuid4()
        self.connection.execute(
            "INSERT INTO worker_leases (worker_id, hostname, pid, pool, device, models, slots,"
            " expires_at) VALUES (%s, 'host', 1, %s, 'cpu', '{demo}', %s,"
            " now() + make_interval(secs => %s))",
            (worker_id, pool, slots, expires_s),
        )
        return worker_id

    def job(self, tenant_id: UUID, **fields: Any) -> UUID:
        """A job with its reservation. See the defaults for the fields."""
        values: dict[str, Any] = {
            "id": uuid7(),
            "tenant_id": tenant_id,
            "pool": "demo",
            "tier": "default",
            "status": "queued",
            "attempt": 0,
            "fail_count": 0,
            "worker_id": None,
            "run_after_s": 0.0,
            "deadline_s": 600.0,
            "hinted_ago_s": 0.0,
            "hint_count": 1,
            "cancel_by": None,
            "input_tokens": 100,
            "max_output_tokens": 50,
            "num_choices": 1,
            "prices": PRICES,
            **fields,
        }
        values["is_finished"] = values["status"] not in ("queued", "in_progress")
        prices = values.pop("prices")
        values |= {
            "version": prices.version,
            "input_price": prices.input_micros,
            "cached_price": prices.cached_micros,
            "output_price": prices.output_micros,
        }
        self.connection.execute(_JOB, values)
        reserve = worst_case_micros(
            input_tokens=values["input_tokens"],
            max_output_tokens=values["max_output_tokens"],
            prices=prices,
        )
        self.reserve(values["id"], tenant_id, reserve)
        return UUID(str(values["id"]))

    def reserve(self, job_id: UUID, tenant_id: UUID, micros: int) -> None:
        self.connection.execute(
            "INSERT INTO reservations (job_id, tenant_id, amount_micros) VALUES (%s, %s, %s)",
            (job_id, tenant_id, micros),
        )
        self.connection.execute(
            "UPDATE accounts SET held_micros = held_micros + %s WHERE tenant_id = %s",
            (micros, tenant_id),
        )

    def running_job(self, tenant_id: UUID, worker_id: UUID, **fields: Any) -> UUID:
        """A job in its first attempt.

        `produced`: the text of its checkpoint, a token a letter; `splits`: of its choices.
        """
        produced, splits = fields.pop("produced", ""), fields.pop("splits", None)
        attempt = fields.pop("attempt", 1)
        job_id = self.job(
            tenant_id, status="in_progress", attempt=attempt, worker_id=worker_id, **fields
        )
        self.attempt(job_id, tenant_id, attempt, worker_id, produced=produced, splits=splits)
        return job_id

    def attempt(
        self,
        job_id: UUID,
        tenant_id: UUID,
        attempt: int,
        worker_id: UUID,
        *,
        produced: str = "",
        splits: Sequence[Any] | None = None,
        outcome: str | None = None,
    ) -> None:
        ids = pack_token_ids(range(len(produced)))
        seq = len(produced) + 1 if produced else 0
        self.connection.execute(
            _ATTEMPT,
            (
                job_id,
                attempt,
                tenant_id,
                worker_id,
                seq,
                ids,
                produced,
                None if splits is None else Jsonb(splits),
                len(produced),
                *[outcome] * 2,
            ),
        )

    def ended_job(self, tenant_id: UUID, *, payer: str = "tenant", **fields: Any) -> UUID:
        """A finished job with an outcome to settle."""
        status = fields.pop("status", "completed" if payer == "tenant" else "failed")
        counts = {"cached_tokens": fields.pop("cached_tokens", 0)}
        counts["output_tokens"] = fields.pop("output_tokens", 10)
        job_id = self.job(tenant_id, status=status, attempt=1, **fields)
        self.connection.execute(_OUTCOME, {"job_id": job_id, "payer": payer, **counts})
        return job_id

    def one(self, query: Any, *parameters: Any) -> dict[str, Any]:
        """The only row of a query."""
        rows = self.connection.execute(query, parameters).fetchall()
        assert len(rows) == 1, rows
        return rows[0]

    def refuse_updates(self, table: str, condition: str) -> None:
        """As if these rows broke a rule of their table: statements that change one of them fail."""
        self.connection.execute(
            "CREATE FUNCTION refuse_update() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE check_violation; END $$"
        )
        self.connection.execute(
            f"CREATE TRIGGER refuse_update BEFORE UPDATE ON {table}"
            f" FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION refuse_update()".encode()
        )

    def of_job(self, job_id: UUID) -> dict[str, Any]:
        return self.one("SELECT * FROM jobs WHERE id = %s", job_id)

    def account(self, tenant_id: UUID) -> tuple[int, int]:
        """(balance, held)."""
        row = self.one("SELECT * FROM accounts WHERE tenant_id = %s", tenant_id)
        return row["balance_micros"], row["held_micros"]
