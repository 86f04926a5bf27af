"""The file object: a row of Postgres as the wire shows it."""

from __future__ import annotations

from typing import Any

from api.job_view import unix_time
from store.files import FileRow, Purpose
from tasks.ids import format_file_id

_JSONL = {Purpose.BATCH, Purpose.BATCH_OUTPUT}


def file_object(row: FileRow) -> dict[str, Any]:
    """The file object of wire format 4.5."""
    return {
        "id": format_file_id(row["id"]),
        "object": "file",
        "bytes": row["num_bytes"],
        "created_at": unix_time(row["created_at"]),
        "expires_at": unix_time(row["expires_at"]),
        "filename": row["filename"],
        "purpose": row["purpose"],
        "status": row["status"],
        "status_details": row["status_details"],
    }


def content_headers(row: FileRow) -> dict[str, str]:
    """Of a download: to be saved, never shown as a page of ours. The name is ours, not a user's."""
    is_jsonl = row["purpose"] in _JSONL
    name = format_file_id(row["id"]) + (".jsonl" if is_jsonl else "")
    return {
        "content-type": "application/jsonl" if is_jsonl else "application/octet-stream",
        "content-disposition": f'attachment; filename="{name}"',
        "x-content-type-options": "nosniff",
    }
