"""Downloads that end early give back their slot and close what they read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from starlette.types import Message

from api.files import download as download_module
from api.files.download import Download, Downloads
from api.files.ranges import wanted
from api.files.slots import TransferSlots
from api.files.store import FileStore
from store.file_contents import FileContents
from store.files import Parts
from tasks.errors import RateLimitExceeded
from tests.support.waiting import until

TENANT = uuid4()
SCOPE = {"type": "http", "method": "GET", "asgi": {"spec_version": "2.3"}}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    opened = FileStore(FileContents(str(tmp_path / "files")), num_threads=2)
    yield opened
    opened.close()


@pytest.fixture
def downloads(store: FileStore) -> Downloads:
    return Downloads(store=store, slots=TransferSlots(1, 1))


async def _download(downloads: Downloads) -> Download:
    """Of a file of several chunks."""
    writer = downloads.store.contents.new_part(TENANT, UUID(int=1))
    writer.write(b"x" * (1 << 20))
    part = writer.finish()
    parts = Parts([part.object_key], [part.num_bytes])
    return await downloads.response(TENANT, parts, wanted({}, part.num_bytes), {})


async def _never(*_: Message) -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def _is_closed(download: Download) -> bool:
    return download._reader._is_closed


def _assert_free(downloads: Downloads) -> None:
    with downloads.slots.take(TENANT):
        pass


async def test_a_client_that_stops_reading_is_given_up(
    downloads: Downloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "SEND_TIMEOUT_S", 0.05)
    download = await _download(downloads)

    async def send(_: Message) -> None:
        await _never()

    await download(SCOPE, _never, send)

    await until(lambda: _is_closed(download), what="closing")
    _assert_free(downloads)


async def test_a_client_that_leaves_ends_the_reading(downloads: Downloads) -> None:
    download = await _download(downloads)
    has_begun, sent = asyncio.Event(), 0

    async def receive() -> Message:
        await has_begun.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal sent
        if body := message.get("body"):
            sent += len(body)
            has_begun.set()
            await asyncio.sleep(0)

    await download(SCOPE, receive, send)

    await until(lambda: _is_closed(download), what="closing")
    assert sent < 1 << 20
    _assert_free(downloads)


async def test_one_too_many_is_refused_and_holds_nothing(downloads: Downloads) -> None:
    download = await _download(downloads)

    with downloads.slots.take(TENANT), pytest.raises(RateLimitExceeded):
        await download(SCOPE, _never, _never)  # type: ignore[arg-type]

    await until(lambda: _is_closed(download), what="closing")
    _assert_free(downloads)
