"""Cases of all but jobs: batches, files, webhooks, retention, accounts."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

from store import (
    batch_driving,
    batch_results,
    batch_turns,
    batches,
    catalog,
    deletion,
    file_output,
    file_retention,
    files,
    retention,
    webhook_sending,
    webhooks,
    worker_models,
)
from store.batch_driving import ReadLines, WrittenLines
from store.batch_turns import BatchRow, Rest
from store.batches import BatchQuota, NewBatch
from store.file_contents import StoredPart
from store.files import NewFile, Purpose
from store.pools import AsyncPool
from store.settings import RetentionSettings
from tasks.errors import BatchQuotaExceeded
from tasks.ids import uuid7
from tests.integration.store.large.world import Call, World

PART = StoredPart("key", 1, b"")
QUOTA = BatchQuota(max_batches=10**9, max_bytes=10**15)


def _batch(world: World) -> BatchRow:
    """The one with very many lines, leased."""
    owner = uuid4()
    row = world.roles.owner.execute(
        "UPDATE batches SET owner = %s, leased_until = now() + interval '1 day' WHERE id = %s"
        " RETURNING *",
        (owner, world.around.batch),
    ).fetchone()
    assert row is not None
    return row


def _drives(function: Any, *args: Any, **named: Any) -> Any:
    """A step of the large batch, told by its row."""
    return lambda world: world.works(function, _batch(world), *args, **named)


def _drives_id(function: Any, *args: Any, **named: Any) -> Any:
    """The same, told by its id."""
    return lambda world: world.works(function, world.around.batch, *args, **named)


def _lease_batch(world: World) -> Call:
    world.roles.owner.execute(
        "UPDATE batches SET owner = NULL, next_step_at = now() WHERE id = %s",
        (world.around.batch,),
    )
    return world.works(batch_turns.lease, world.around.batch)


def _lines(num: int, number: int) -> list[dict[str, Any]]:
    return [
        {"number": number + n, "custom_id": f"new-{number + n}", "body": b"{}", "prefix": b""}
        for n in range(num)
    ]


def _written(world: World) -> Call:
    row = _batch(world)
    numbers = [2, 4, 6]
    batch_driving.refuse_pending(world.roles.worker, world.around.batch, {})

    def write(worker: Any, number: int) -> object:
        written = WrittenLines(
            numbers=[number],
            num_completed=1,
            num_failed=0,
            input_tokens=1,
            cached_tokens=0,
            output_tokens=1,
            output_file_id=None,
            error_file_id=None,
        )
        return batch_driving.note_over(worker, row, written)

    return world.works_each(write, numbers)


def _create_batch(world: World) -> Call:
    def new() -> NewBatch:
        return NewBatch(
            id=uuid7(),
            tenant_id=world.flood,
            api_key_id="key",
            endpoint="/v1/chat/completions",
            completion_window="24h",
            window_s=86_400,
            service_tier="batch",
            input_file_id=world.around.input_file,
            input_bytes=1,
            output_ttl_s=None,
            metadata={},
        )

    async def create(pool: AsyncPool) -> None:
        with suppress(BatchQuotaExceeded):  # it has kept too many, which is counted all the same
            await batches.create_batch(pool, new(), QUOTA)

    return world.asks_each(create)


def _commit(world: World) -> Call:
    def new() -> NewFile:
        return NewFile(
            id=uuid7(),
            tenant_id=world.flood,
            purpose=Purpose.USER_DATA,
            filename="file",
            ttl_s=None,
            part=PART,
        )

    return world.asks_each(lambda pool: files.commit_upload(pool, new()))


def _list_files(purpose: str | None) -> Any:
    return lambda world: world.asks(
        files.list_files, world.flood, purpose=purpose, after=None, limit=20, is_newest_first=True
    )


def _new_endpoint(world: World) -> Call:
    def new() -> dict[str, Any]:
        values = {"id": uuid7(), "url": "https://example.com/", "event_types": []}
        return {**values, "name": "", "secret": b"", "secret_hint": ""}

    return world.asks_each(lambda pool: webhooks.create_endpoint(pool, world.flood, new()))


def _deliveries(status: str | None, *, is_later: bool = False) -> Any:
    return lambda world: world.asks(
        webhooks.list_deliveries,
        world.flood,
        world.around.endpoint,
        status=status,
        after=world.id_of("deliveries") if is_later else None,
        limit=20,
    )


def _with_delivery(function: Any, **named: Any) -> Any:
    def case(world: World) -> Call:
        delivery = {"id": world.id_of("deliveries"), "attempts": 0}
        return world.works(function, delivery, **named)

    return case


def _take(world: World) -> Call:
    due = webhook_sending.due_endpoints(world.roles.worker).ids
    assert due
    return world.works(webhook_sending.take, due=due, busy=[], limit=1)


def _expires(kind: str) -> Any:
    return lambda world: world.works(retention.expiries(RetentionSettings())[kind], batch=10)


CASES: dict[str, Any] = {
    "batch_turns.due": lambda w: w.works(batch_turns.due),
    "batch_turns.lease": _lease_batch,
    "batch_turns.release": _drives(batch_turns.release, Rest(pause_s=1)),
    "batch_turns.renew": _drives(batch_turns.renew),
    "batch_turns.wake_for_credit": lambda w: w.works(batch_turns.wake_for_credit, w.flood),
    "batch_driving.is_owned": _drives(batch_driving.is_owned),
    "batch_driving.add_lines": lambda w: w.works_each(
        lambda worker, n: batch_driving.add_lines(worker, w.around.batch, _lines(3, n)),
        [10**8, 10**8 + 10, 10**8 + 20],
    ),
    "batch_driving.advance": _drives(
        batch_driving.advance, ReadLines([], 1, 1), num_added=0, mistakes=[]
    ),
    "batch_driving.begin": _drives(batch_driving.begin),
    "batch_driving.pending_lines": _drives_id(
        batch_driving.pending_lines, limit=20, max_bytes=1_000
    ),
    "batch_driving.note_submitted": _drives_id(batch_driving.note_submitted, 2, uuid7()),
    "batch_driving.note_refused": _drives_id(batch_driving.note_refused, 2, {}),
    "batch_driving.postpone_line": _drives_id(batch_driving.postpone_line, 2, pause_s=1),
    "batch_driving.postpone_result": _drives_id(batch_driving.postpone_result, 2, pause_s=1),
    "batch_driving.running_jobs": _drives_id(batch_driving.running_jobs, limit=10),
    "batch_driving.left": _drives_id(batch_driving.left),
    "batch_results.lines_to_write": _drives_id(
        lambda worker, batch: list(batch_results.lines_to_write(worker, batch, limit=10))
    ),
    "batch_results.lines_to_write of one": _drives_id(
        lambda worker, batch: list(batch_results.lines_to_write(worker, batch, limit=1, number=2))
    ),
    "batch_results.heads_to_write": _drives_id(batch_results.heads_to_write, limit=10),
    "batch_driving.note_over": _written,
    "batches.create_batch": _create_batch,
    "batches.get_batch": lambda w: w.asks(batches.get_batch, w.flood, w.around.batch),
    "batches.list_batches": lambda w: w.asks(batches.list_batches, w.flood, after=None, limit=20),
    "batches.list_batches behind one": lambda w: w.asks(
        batches.list_batches, w.flood, after=w.id_of("batches"), limit=20
    ),
    "batches.cancel_batch": lambda w: w.asks(batches.cancel_batch, w.flood, w.id_of("batches")),
    "batches.delete_batch": lambda w: w.asks(batches.delete_batch, w.flood, w.id_of("batches")),
    "deletion.jobs_of_batch": lambda w: w.works(
        deletion.jobs_of_batch, w.id_of("batches"), batch=10
    ),
    "deletion.deleted_batches": lambda w: w.works(
        deletion.deleted_batches, after=UUID(int=0), batch=10
    ),
    "deletion.remove_batch": lambda w: w.works(deletion.remove_batch, w.id_of("batches")),
    "catalog.load_models": lambda w: w.asks(catalog.load_models),
    "catalog.load_assets": lambda w: w.asks(catalog.load_assets, "demo"),
    "worker_models.list_worker_models": lambda w: w.works(
        worker_models.list_worker_models, "default"
    ),
    "file_output.begin_output": lambda w: w.works(file_output.begin_output, w.flood),
    "file_output.take_output": lambda w: w.works(file_output.take_output, w.flood, uuid7()),
    "file_output.open_output": lambda w: w.works(file_output.open_output, w.flood, filename="file"),
    "file_output.append_part": lambda w: w.works(
        file_output.append_part, w.flood, w.around.input_file, PART
    ),
    "file_output.limit_outputs": lambda w: w.works(
        file_output.limit_outputs, w.flood, [w.id_of("files")], ttl_s=86_400
    ),
    "file_output.parts_of": lambda w: w.works(file_output.parts_of, w.flood, w.id_of("files")),
    "file_retention.expired_files": lambda w: w.works(file_retention.expired_files, batch=10),
    "file_retention.expire_files": lambda w: w.works(
        file_retention.expire_files, w.ids_of("files")
    ),
    "file_retention.deleted_files": lambda w: w.works(
        file_retention.deleted_files, after=UUID(int=0), batch=10
    ),
    "file_retention.note_purged": lambda w: w.works(file_retention.note_purged, uuid7()),
    "file_retention.purged_files": lambda w: w.works(file_retention.purged_files, batch=10),
    "file_retention.forget_file": lambda w: w.works(file_retention.forget_file, w.id_of("files")),
    "file_retention.lost_uploads": lambda w: w.works(file_retention.lost_uploads, batch=10),
    "file_retention.abandon_uploads": lambda w: w.works(file_retention.abandon_uploads, [uuid7()]),
    "file_retention.abandoned_uploads": lambda w: w.works(
        file_retention.abandoned_uploads, after=UUID(int=0), batch=10
    ),
    "file_retention.forget_upload": lambda w: w.works(file_retention.forget_upload, uuid7()),
    "files.commit_upload": _commit,
    "files.abandon_upload": lambda w: w.asks(files.abandon_upload, w.flood, uuid7()),
    "files.forget_upload": lambda w: w.asks(files.forget_upload, w.flood, uuid7()),
    "files.get_file": lambda w: w.asks(files.get_file, w.flood, w.id_of("files")),
    "files.list_files": _list_files(None),
    "files.list_files of a purpose": _list_files("batch_output"),
    "files.list_parts": lambda w: w.asks(files.list_parts, w.flood, w.id_of("files")),
    "files.delete_file": lambda w: w.asks(files.delete_file, w.flood, w.id_of("files")),
    "webhook_sending.due_endpoints": lambda w: w.works(webhook_sending.due_endpoints),
    "webhook_sending.take": _take,
    "webhook_sending.note_delivered": _with_delivery(
        webhook_sending.note_delivered, status_code=200
    ),
    "webhook_sending.note_failed": _with_delivery(
        webhook_sending.note_failed, status_code=500, error="", delay_s=1.0, is_gone=False
    ),
    "webhooks.create_endpoint": _new_endpoint,
    "webhooks.get_endpoint": lambda w: w.asks(webhooks.get_endpoint, w.flood, w.around.endpoint),
    "webhooks.list_endpoints": lambda w: w.asks(
        webhooks.list_endpoints, w.flood, after=None, limit=20
    ),
    "webhooks.update_endpoint": lambda w: w.asks(
        webhooks.update_endpoint, w.flood, w.around.endpoint, {"name": "new"}
    ),
    "webhooks.rotate_secret": lambda w: w.asks(
        webhooks.rotate_secret, w.flood, w.around.endpoint, secret=b"", hint="", keep_h=1
    ),
    "webhooks.list_deliveries": _deliveries(None),
    "webhooks.list_deliveries behind one": _deliveries(None, is_later=True),
    "webhooks.list_deliveries that wait": _deliveries("pending"),
    "webhooks.list_deliveries that arrived": _deliveries("delivered"),
    "webhooks.list_deliveries that failed": _deliveries("failed"),
    "webhooks.get_delivery": lambda w: w.asks(
        webhooks.get_delivery, w.flood, w.id_of("deliveries")
    ),
    "webhooks.resend": lambda w: w.asks(
        webhooks.resend, w.flood, w.around.endpoint, w.id_of("deliveries")
    ),
    "webhooks.add_sample": lambda w: w.asks(
        webhooks.add_sample, w.flood, w.around.endpoint, type="batch.failed", object_id="batch_1"
    ),
    **{
        f"retention.expiries of {kind}": _expires(kind)
        for kind in retention.expiries(RetentionSettings())
        if not kind.startswith("months_of_")
    },
    "retention.note_run": lambda w: w.works(retention.note_run, "kind", 0),
    "retention.last_runs": lambda w: w.works(retention.last_runs),
    "retention.ensure_partitions": lambda w: w.works(retention.ensure_partitions, months_ahead=0),
    "retention.drop_months": lambda w: w.works(
        retention.drop_months, batch=1, parent="job_attempts", keep_s=86_400.0 * 340
    ),
}

BOUNDS = {
    "batches.create_batch": QUOTA.max_kept // 50,  # counts those that are kept
    "webhook_sending.due_endpoints": webhook_sending.MAX_SEEN * 5,
    "batch_turns.due": batch_turns.MAX_DUE * 3,
}
