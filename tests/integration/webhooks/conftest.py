"""Endpoints and deliveries of a tenant, a sender, and a server that receives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest

from cli.stack.database import DatabaseUrls
from tasks.ids import uuid7
from tasks.webhook_events import WEBHOOK_EVENTS
from tasks.webhook_urls import UrlPolicy
from tests.support.rows import Rows
from tests.support.webhook_receiver import Receiver, receiver
from workers.maintenance.webhooks.names import Resolve, system_addresses
from workers.maintenance.webhooks.sender import WebhookSender

SECRET = bytes(range(32))


@dataclass(frozen=True)
class Hooks:
    """One tenant's endpoints, written by the owner."""

    rows: Rows
    tenant_id: UUID

    def endpoint(self, url: str = "https://example.com/", *events: str, **columns: Any) -> UUID:
        endpoint_id = uuid7()
        self.rows.connection.execute(
            "INSERT INTO webhook_endpoints (id, tenant_id, url, event_types, name, secret,"
            " secret_hint) VALUES (%s, %s, %s, %s, 'mine', %s, '')",
            (endpoint_id, self.tenant_id, url, list(events or WEBHOOK_EVENTS), SECRET),
        )
        for name, value in columns.items():
            self.rows.connection.execute(
                f"UPDATE webhook_endpoints SET {name} = %s WHERE id = %s", (value, endpoint_id)
            )
        return endpoint_id

    def delivery(self, endpoint_id: UUID, **columns: Any) -> UUID:
        values = {
            "endpoint_id": endpoint_id,
            "tenant_id": self.tenant_id,
            "event_id": uuid4(),
            "type": "response.completed",
            "object_id": "resp_" + "0" * 32,
            **columns,
        }
        names = ", ".join(values)
        marks = ", ".join(["%s"] * len(values))
        row = self.rows.one(
            f"INSERT INTO webhook_deliveries ({names}) VALUES ({marks}) RETURNING id",
            *values.values(),
        )
        return UUID(str(row["id"]))

    def deliveries(self) -> list[dict[str, Any]]:
        return self.rows.connection.execute(
            "SELECT * FROM webhook_deliveries ORDER BY created_at, id"
        ).fetchall()

    def of(self, delivery_id: UUID) -> dict[str, Any]:
        return self.rows.one("SELECT * FROM webhook_deliveries WHERE id = %s", delivery_id)

    def endpoint_row(self, endpoint_id: UUID) -> dict[str, Any]:
        return self.rows.one("SELECT * FROM webhook_endpoints WHERE id = %s", endpoint_id)

    def make_due(self) -> None:
        """Let time pass until what waits for another attempt is due."""
        self.rows.connection.execute(
            "UPDATE webhook_deliveries SET next_attempt_at = now()"
            " WHERE next_attempt_at IS NOT NULL"
        )


@pytest.fixture
def hooks(rows: Rows) -> Hooks:
    return Hooks(rows, rows.tenant())


@pytest.fixture
def server() -> Iterator[Receiver]:
    with receiver() as opened:
        yield opened


@contextmanager
def running_sender(
    database: DatabaseUrls, policy: UrlPolicy, *, resolve: Resolve = system_addresses
) -> Iterator[WebhookSender]:
    thread = WebhookSender(database.worker, policy, resolve=resolve)
    thread.start()
    try:
        yield thread
    finally:
        thread.stop()


@pytest.fixture
def sender(database: DatabaseUrls) -> Iterator[WebhookSender]:
    """Running, and allowed to send to this machine."""
    with running_sender(database, UrlPolicy(allow_private=True)) as thread:
        yield thread
