"""Coming back to a job in the words it was asked for in."""

from __future__ import annotations

from api.dialects.fold import ShownJob
from api.services import Services
from api.submitting import vocabulary_of
from store.jobs import get_job_with_request
from store.tenants import ApiKey
from tasks.errors import InvalidRequest, JobNotFound
from tasks.ids import parse_job_id
from tasks.jobs import Dialect

MAX_SEQ = 2**53  # what JSON numbers hold exactly; Redis takes no more than 2**64 in an entry's id

_NOUNS = {
    Dialect.JOB: "job",
    Dialect.CHAT: "chat completion",
    Dialect.COMPLETION: "completion",
    Dialect.RESPONSE: "response",
}


async def find_shown_job(
    services: Services, caller: ApiKey, text: str, prefix: str, dialect: Dialect
) -> ShownJob:
    """The caller's job by the id of a dialect. Raises JobNotFound, for others' jobs, for those of
    another dialect and for deleted ones too.
    """
    job_id = parse_job_id(text, prefix)
    row = await get_job_with_request(services.pool, caller.tenant_id, job_id) if job_id else None
    if row is None or row["dialect"] != dialect or row["deleted_at"] is not None:
        raise not_found(dialect)
    return ShownJob(row, row.pop("request") or {}, vocabulary_of(services, row))


def not_found(dialect: Dialect) -> JobNotFound:
    """In the words of the dialect."""
    return JobNotFound(f"No {_NOUNS[dialect]} with this id.")


def cursor_of(last_event_id: str | None, starting_after: int | None, *, start: int = 0) -> int:
    """The last event a client has. The header is what browsers resume with; it goes first."""
    if last_event_id:
        return parse_event_id(last_event_id)
    return start if starting_after is None else starting_after


def parse_event_id(text: str) -> int:
    """The number in a Last-Event-ID. Raises InvalidRequest."""
    if not (text.isascii() and text.isdigit() and len(text) <= 16) or int(text) > MAX_SEQ:
        raise InvalidRequest("Last-Event-ID must be the id of an event.", param="Last-Event-ID")
    return int(text)
