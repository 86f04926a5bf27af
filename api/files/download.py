"""Sends the contents of a file as they are read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from uuid import UUID

import structlog
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from api.files.ranges import ByteRange
from api.files.slots import TransferSlots
from api.files.store import FileStore
from api.settings import SEND_TIMEOUT_S
from store.file_contents import PartsReader
from store.files import Parts

log = structlog.get_logger(__name__)


class Downloads:
    """Makes responses. One an API process."""

    def __init__(self, *, store: FileStore, slots: TransferSlots) -> None:
        self.store = store
        self.slots = slots

    async def response(
        self,
        tenant_id: UUID,
        parts: Parts,
        wanted: ByteRange,
        headers: Mapping[str, str],
    ) -> Download:
        """The answer. The first bytes are read before it begins, so that a fault has a status."""
        object_keys, skip = wanted.parts(parts)
        reader = self.store.contents.open(object_keys, skip=skip, limit=wanted.num_bytes)
        try:
            first = await self.store.run(reader.read)
        except BaseException:
            self.store.run_later(reader.close)
            raise
        return Download(self, tenant_id, reader, first, wanted=wanted, headers=headers)


class Download(StreamingResponse):
    """One download. Ends early when the client leaves or stops reading."""

    def __init__(
        self,
        downloads: Downloads,
        tenant_id: UUID,
        reader: PartsReader,
        first: bytes,
        *,
        wanted: ByteRange,
        headers: Mapping[str, str],
    ) -> None:
        self._downloads = downloads
        self._tenant_id = tenant_id
        self._reader = reader
        super().__init__(
            self._read(first),
            status_code=HTTPStatus.PARTIAL_CONTENT if wanted.is_partial else HTTPStatus.OK,
            headers={**headers, **wanted.headers},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send(message)

        try:
            with self._downloads.slots.take(self._tenant_id):
                await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            log.warning("download_stalled")
        finally:
            self._downloads.store.run_later(self._reader.close)

    async def _read(self, chunk: bytes) -> AsyncIterator[bytes]:
        while chunk:
            yield chunk
            chunk = await self._downloads.store.run(self._reader.read)
