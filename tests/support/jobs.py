"""Makes tenants and jobs the way the API does, for tests below the API."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from cli.stack.database import DatabaseUrls
from store.admission import Admitted, FrozenPrices, NewJob, admit
from store.pools import DictConnection, async_pool, connect
from store.tenants import create_tenant
from tasks.ids import uuid7
from tasks.queues import ServiceTier, lane_for
from tasks.token_ids import pack_token_ids

PRICES = FrozenPrices(
    version=1, input_micros=300_000, cached_micros=30_000, output_micros=1_200_000, currency="USD"
)


@dataclass
class Jobs:
    """One tenant and its jobs, on a database of its own."""

    urls: DatabaseUrls
    name: str = "acme"
    tenant_id: UUID = field(init=False)

    def __post_init__(self) -> None:
        with self.connect() as connection:
            self.tenant_id = create_tenant(connection, name=self.name, credit_micros=1_000_000_000)

    @property
    def lane(self) -> int:
        """Of its tenant."""
        return lane_for(self.tenant_id)

    def connect(self) -> DictConnection:
        """As the owner. Autocommit."""
        return connect(self.urls.owner, application_name="test")

    def new(self, **changes: Any) -> NewJob:
        """A job for the stub engine, not admitted yet."""
        tenant_id = changes.pop("tenant_id", self.tenant_id)
        prompt: Sequence[int] = changes.pop("prompt", (1, 2, 3))
        sampling = changes.pop("sampling", {"seed": 7, "temperature": 0.0})
        fields: dict[str, Any] = {
            "id": uuid7(),
            "tenant_id": tenant_id,
            "api_key_id": "key",
            "model": "stub",
            "model_requested": "stub",
            "pool": "default",
            "service_tier": ServiceTier.DEFAULT,
            "lane": lane_for(tenant_id),
            "deadline_s": 600.0,
            "max_fails": 3,
            "input_tokens": len(prompt),
            "max_output_tokens": 20,
            "prices": PRICES,
            "reserve_micros": 100,
            "request_hash": hashlib.sha256(b"request").digest(),
            "request": {"model": "stub"},
            "prompt_token_ids": pack_token_ids(prompt),
            "sampling": sampling,
        }
        return NewJob(**{**fields, **changes})

    def admit(self, job: NewJob) -> Admitted:
        """Through the API's own statement and role."""
        return asyncio.run(self._admit(job))

    def add(self, **changes: Any) -> UUID:
        """Admit a new job."""
        return self.admit(self.new(**changes)).job_id

    def row(self, job_id: UUID) -> dict[str, Any]:
        """The job with its result."""
        with self.connect() as connection:
            row = connection.execute(
                "SELECT j.*, r.output, r.last_seq, r.event_log FROM jobs j"
                " LEFT JOIN job_results r ON r.job_id = j.id WHERE j.id = %s",
                (job_id,),
            ).fetchone()
        assert row is not None
        return row

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Rows as the owner sees them."""
        with self.connect() as connection:
            return connection.execute(statement.encode(), parameters).fetchall()

    async def _admit(self, job: NewJob) -> Admitted:
        async with async_pool(self.urls.api, application_name="test-api", max_size=1) as pool:
            return await admit(pool, job)
