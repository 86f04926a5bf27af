"""Takes one upload from the socket into the content store.

Whatever ends it early (a mistake of the client, its leaving, a fault of ours), nothing stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID

import structlog
from starlette.requests import ClientDisconnect, Request

from api.content_coding import Inflater, codings_of
from api.files.multipart import Field, FileBegin, FormParser, Piece
from api.files.slots import TransferSlots
from api.files.store import FileStore
from api.limits.bodies import LargeBodies
from api.media_types import check_is_form
from api.schemas.files import clean_filename, parse_form, parse_purpose
from api.settings import MAX_FILE_BYTES, MAX_FORM_BYTES, UPLOAD_IDLE_S
from store.file_contents import CHUNK_BYTES, PartWriter
from store.files import (
    UPLOAD_MAX_S,
    FileRow,
    NewFile,
    abandon_upload,
    begin_upload,
    commit_upload,
    forget_upload,
    has_room,
)
from store.pools import AsyncPool
from tasks.errors import InvalidRequest, RequestTooLarge, StorageQuotaExceeded
from tasks.ids import uuid7

log = structlog.get_logger(__name__)


class Uploads:
    """Takes uploads. One an API process."""

    def __init__(
        self,
        *,
        pool: AsyncPool,
        store: FileStore,
        slots: TransferSlots,
        bodies: LargeBodies,
        quota_bytes: int,
    ) -> None:
        self._pool = pool
        self._store = store
        self._slots = slots
        self._bodies = bodies
        self._quota_bytes = quota_bytes

    async def take(self, request: Request, tenant_id: UUID) -> FileRow:
        """The file of this request, committed. Raises a ServiceError."""
        check_is_form(request)
        inflater = Inflater(codings_of(request), MAX_FILE_BYTES + MAX_FORM_BYTES)
        parser = FormParser(request.headers.get("content-type", ""))
        pace = self._bodies.of(tenant_id).pace
        with self._slots.take(tenant_id):
            file_id = uuid7()
            max_bytes = await self._reserve(tenant_id, file_id, _declared_bytes(request))
            writer = self._store.contents.new_part(tenant_id, file_id)
            incoming = _Incoming(self._store, writer, max_bytes)
            try:
                await _receive(_pieces(request, inflater, pace), parser, incoming)
                return await self._commit(await incoming.finish(tenant_id, file_id))
            except BaseException:
                await self._discard(tenant_id, file_id, writer)
                raise

    async def _reserve(self, tenant_id: UUID, file_id: UUID, declared: int | None) -> int:
        """How many bytes the file may have: without a declared length, all that is left."""
        most = min(declared or MAX_FILE_BYTES, MAX_FILE_BYTES)
        reserved = await begin_upload(
            self._pool,
            tenant_id,
            file_id,
            least=most if declared else 1,
            most=most,
            quota_bytes=self._quota_bytes,
        )
        if reserved is None:
            raise StorageQuotaExceeded
        return reserved

    async def require_room(self, tenant_id: UUID) -> None:
        """For files that are written later, by a batch. Raises StorageQuotaExceeded."""
        if not await has_room(self._pool, tenant_id, quota_bytes=self._quota_bytes):
            raise StorageQuotaExceeded

    async def _commit(self, new: NewFile) -> FileRow:
        row = await commit_upload(self._pool, new)
        if row is None:
            raise InvalidRequest("The upload took too long.")
        return row

    async def _discard(self, tenant_id: UUID, file_id: UUID, writer: PartWriter) -> None:
        """What fails here, the sweeper of the maintenance worker does later."""
        try:
            # The order matters: an upload whose commit got through after all isn't touched.
            if await abandon_upload(self._pool, tenant_id, file_id):
                await self._store.run(writer.abort)
                await self._store.run(self._store.contents.remove, tenant_id, file_id)
                await forget_upload(self._pool, tenant_id, file_id)
        except Exception as error:
            log.warning("upload_not_discarded", error=type(error).__name__)


class _Incoming:
    """What has come of one upload: its fields, and bytes on their way to the store."""

    def __init__(self, store: FileStore, writer: PartWriter, max_bytes: int) -> None:
        self._store = store
        self._writer = writer
        self._max_bytes = max_bytes  # what the quota has room for
        self._fields: dict[str, str] = {}
        self._filename: str | None = None
        self._num_bytes = 0
        self._buffer = bytearray()

    def take(self, piece: Piece) -> None:
        """Mistakes are found as early as the client's order of fields allows."""
        match piece:
            case Field(name, value):
                self._fields[name] = value
                if name == "purpose":
                    parse_purpose(value)
            case FileBegin(filename):
                self._filename = clean_filename(filename)
            case bytes():
                self._take_bytes(piece)

    async def write_when_full(self) -> None:
        """The socket is not read while this waits."""
        if len(self._buffer) >= CHUNK_BYTES:
            await self._write()

    async def finish(self, tenant_id: UUID, file_id: UUID) -> NewFile:
        """Check the whole, store the rest."""
        form = parse_form(self._fields)
        if self._filename is None:
            raise InvalidRequest("Missing required parameter: 'file'.", param="file")
        if not self._num_bytes:
            raise InvalidRequest("The file is empty.", param="file")
        if self._buffer:
            await self._write()
        return NewFile(
            id=file_id,
            tenant_id=tenant_id,
            purpose=form.purpose,
            filename=self._filename,
            ttl_s=form.ttl_s,
            part=await self._store.run(self._writer.finish),
        )

    def _take_bytes(self, data: bytes) -> None:
        self._num_bytes += len(data)
        if self._num_bytes > MAX_FILE_BYTES:
            raise RequestTooLarge(f"A file may have up to {MAX_FILE_BYTES >> 20} MiB.")
        if self._num_bytes > self._max_bytes:
            raise StorageQuotaExceeded
        self._buffer += data

    async def _write(self) -> None:
        data, self._buffer = self._buffer, bytearray()
        await self._store.run(self._writer.write, data)


async def _receive(body: AsyncIterator[bytes], parser: FormParser, incoming: _Incoming) -> None:
    try:
        async with asyncio.timeout(UPLOAD_MAX_S):
            async for data in body:
                for piece in parser.feed(data):
                    incoming.take(piece)
                await incoming.write_when_full()
    except TimeoutError:
        raise InvalidRequest("The upload took too long.") from None
    parser.finish()


async def _pieces(
    request: Request, inflater: Inflater, pace: Callable[[int], Awaitable[None]]
) -> AsyncIterator[bytes]:
    """The body as it comes, at the pace of what it inflates to."""
    async for chunk in _chunks(request):
        for piece in inflater.feed(chunk):
            await pace(inflater.cost_of(piece))
            yield piece
    inflater.finish()


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """The body on the wire. Raises InvalidRequest if the client leaves or stalls."""
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(UPLOAD_IDLE_S):
                chunk = await anext(stream, None)
        except ClientDisconnect:
            raise InvalidRequest("The client left before it had sent the body.") from None
        except TimeoutError:
            raise InvalidRequest("The upload stalled.") from None
        if chunk is None:
            return
        yield chunk


def _declared_bytes(request: Request) -> int | None:
    """The length of the body, which bounds the file's, unless it is compressed."""
    if codings_of(request):
        return None
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else None
