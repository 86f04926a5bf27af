"""The largest things beside jobs that a tenant can own, written straight into Postgres and the
content store. No pytest in here: benchmarks use it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from psycopg.types.json import Jsonb

from store.file_contents import FileContents
from store.pools import DictConnection
from tasks.ids import uuid7
from tasks.webhook_events import WEBHOOK_EVENTS
from tasks.webhook_urls import MAX_URL

_FILES = """
INSERT INTO files (id, tenant_id, purpose, filename, num_bytes, num_parts, status)
SELECT id, %(tenant_id)s, %(purpose)s, repeat('f', 255), 1, 0, 'processed'
FROM unnest(%(ids)s::uuid[]) AS id
"""
_PARTS = """
INSERT INTO file_parts (file_id, number, tenant_id, object_key, num_bytes)
SELECT %(id)s, n, %(tenant_id)s, %(object_key)s, %(num_bytes)s FROM generate_series(1, %(num)s) AS n
"""
_USAGE = """
INSERT INTO usage (job_id, tenant_id, api_key_id, model, service_tier, status, payer, input_tokens,
    cached_tokens, output_tokens, price_version, amount_micros, currency, created_at, end_user)
SELECT gen_random_uuid(), %(tenant_id)s, 'key-' || n, %(model)s, 'default', 'completed', 'tenant',
    100, 30, 50, 1, 7, 'USD', to_timestamp(%(at)s + n), 'user-' || repeat('u', 100) || n
FROM generate_series(1, %(num)s) AS n
"""
_BATCHES = """
INSERT INTO batches (id, tenant_id, api_key_id, endpoint, completion_window, service_tier,
    input_file_id, metadata, errors, status, failed_at, expires_at)
SELECT id, %(tenant_id)s, 'key', '/v1/chat/completions', '24h', 'batch', gen_random_uuid(),
    %(metadata)s, %(errors)s, %(status)s, now(), now() + interval '1 day'
FROM unnest(%(ids)s::uuid[]) AS id
"""
_ENDPOINTS = """
INSERT INTO webhook_endpoints (id, tenant_id, url, event_types, name, secret, secret_hint)
SELECT id, %(tenant_id)s, %(url)s, %(event_types)s, repeat('n', 256), ''::bytea, 'hint'
FROM unnest(%(ids)s::uuid[]) AS id
"""
_DELIVERIES = """
INSERT INTO webhook_deliveries (id, endpoint_id, tenant_id, event_id, type, object_id, last_error,
    given_up_at)
SELECT id, %(endpoint_id)s, %(tenant_id)s, gen_random_uuid(), 'response.completed',
    'resp_' || repeat('0', 32), repeat('e', 500), now()
FROM unnest(%(ids)s::uuid[]) AS id
"""

METADATA = {f"{'k' * 60}{n:04}": "v" * 512 for n in range(16)}
HOOK_URL = "https://example.com/".ljust(MAX_URL, "u")
MISTAKES = [
    {
        "code": "invalid_custom_id",
        "message": "'custom_id' must be a text of 1 to 64 characters.",
        "line": n,
        "param": "custom_id",
    }
    for n in range(100)
]


@dataclass(frozen=True, slots=True)
class Others:
    """Writes them as the database's owner; ids are returned."""

    connection: DictConnection
    tenant_id: UUID
    contents: FileContents

    def files(self, num: int, *, purpose: str = "user_data") -> list[UUID]:
        """Without contents, to be listed, deleted, or named."""
        ids = [uuid7() for _ in range(num)]
        row = {"tenant_id": self.tenant_id, "ids": ids, "purpose": purpose}
        self.connection.execute(_FILES, row)
        return ids

    def file_of_parts(self, num_parts: int, num_bytes: int) -> UUID:
        """With contents. All parts are one object: for readers it makes no difference."""
        [file_id] = self.files(1)
        writer = self.contents.new_part(self.tenant_id, file_id)
        writer.write(b"x" * num_bytes)
        row = {
            "id": file_id,
            "tenant_id": self.tenant_id,
            "object_key": writer.finish().object_key,
            "num_bytes": num_bytes,
            "num": num_parts,
        }
        self.connection.execute(_PARTS, row)
        return file_id

    def usage(self, model: str, num: int, *, at: int) -> None:
        """Settled jobs that ended a second apart, each of another key and user."""
        row = {"tenant_id": self.tenant_id, "model": model, "num": num, "at": at}
        self.connection.execute(_USAGE, row)

    def batches(self, num: int, *, status: str = "failed") -> list[UUID]:
        """Batches that nothing drives, with all the metadata and mistakes that there may be."""
        ids = [uuid7() for _ in range(num)]
        row = {
            "tenant_id": self.tenant_id,
            "ids": ids,
            "status": status,
            "metadata": Jsonb(METADATA),
            "errors": Jsonb(MISTAKES),
        }
        self.connection.execute(_BATCHES, row)
        return ids

    def endpoints(self, num: int) -> list[UUID]:
        """Of webhooks, each with all there may be; more than a tenant may make."""
        ids = [uuid7() for _ in range(num)]
        row = {
            "tenant_id": self.tenant_id,
            "ids": ids,
            "url": HOOK_URL,
            "event_types": list(WEBHOOK_EVENTS),
        }
        self.connection.execute(_ENDPOINTS, row)
        return ids

    def deliveries(self, endpoint_id: UUID, num: int) -> list[UUID]:
        """That failed, each with all that there is to say about it."""
        ids = [uuid7() for _ in range(num)]
        row = {"tenant_id": self.tenant_id, "endpoint_id": endpoint_id, "ids": ids}
        self.connection.execute(_DELIVERIES, row)
        return ids
