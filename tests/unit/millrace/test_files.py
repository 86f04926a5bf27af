"""Uploads, downloads and estimates against made-up answers, by both clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from millrace import APIConnectionError, AsyncClient, Client, NotFoundError, retries

Handler = Callable[[httpx.Request], httpx.Response]

FILE = {"id": "file-1", "object": "file", "bytes": 3, "created_at": 1, "expires_at": None,
        "filename": "a.txt", "purpose": "user_data", "status": "processed"}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.0)


class Either:
    """One of the two clients, used the same way."""

    def __init__(self, is_async: bool) -> None:
        self.is_async = is_async

    def __call__(self, handler: Handler, call: Callable[[Any], Any]) -> Any:
        transport = httpx.MockTransport(handler)
        if self.is_async:
            return asyncio.run(self._await(transport, call))
        with Client("http://test", "key", transport=transport) as client:
            return call(client)

    @staticmethod
    async def _await(transport: httpx.MockTransport, call: Callable[[Any], Any]) -> Any:
        async with AsyncClient("http://test", "key", transport=transport) as client:
            return await call(client)


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def use(request: pytest.FixtureRequest) -> Either:
    return Either(request.param)


class CutOff(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that breaks after its first bytes."""

    def __iter__(self) -> Iterator[bytes]:
        yield b"half of"
        raise httpx.ReadError("cut off")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"half of"
        raise httpx.ReadError("cut off")


def test_upload_is_sent_whole_again_after_a_failure(use: Either, tmp_path: Path) -> None:
    bodies: list[bytes] = []
    progress: list[tuple[int, int]] = []
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 200_000)

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers["content-length"] == str(len(request.content))
        bodies.append(request.content)
        return httpx.Response(503) if len(bodies) == 1 else httpx.Response(200, json=FILE)

    file = use(
        handler,
        lambda client: client.files.upload(
            path,
            purpose="user_data",
            expires_after_s=3600,
            progress=lambda *now: progress.append(now),
        ),
    )

    assert file.id == "file-1"
    assert all(b"x" * 200_000 in body and b"user_data" in body for body in bodies)
    assert b'name="expires_after[seconds]"' in bodies[0]
    assert progress[-1] == (200_000, 200_000)
    assert min(progress)[0] < 200_000


def test_missing_file_is_never_sent(use: Either, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        use(
            lambda request: pytest.fail("sent"),
            lambda client: client.files.upload(tmp_path / "none"),
        )


def test_download_starts_anew_where_it_was_cut_off(use: Either, tmp_path: Path) -> None:
    tries: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        tries.append(request.url.path)
        if len(tries) == 1:
            return httpx.Response(200, stream=CutOff())
        return httpx.Response(200, content=b"whole")

    use(handler, lambda client: client.files.download("file-1", tmp_path / "a"))

    assert tries == ["/v1/files/file-1/content"] * 2
    assert (tmp_path / "a").read_bytes() == b"whole"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda: httpx.Response(404, json={}), NotFoundError),
        (lambda: httpx.Response(200, stream=CutOff()), APIConnectionError),
    ],
)
def test_download_that_fails_leaves_what_was_there(
    use: Either, tmp_path: Path, answer: Callable[[], httpx.Response], error: type[Exception]
) -> None:
    (tmp_path / "a").write_text("old")

    with pytest.raises(error):
        use(lambda _: answer(), lambda client: client.files.download("file-1", tmp_path / "a"))

    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_estimate_is_typed(use: Either) -> None:
    costs = {"tiers": {"flex": {"p50_micros": 1, "p90_micros": 2, "max_micros": 3}}}
    output = {"p50": 4, "p90": 5, "p99": 6, "source": "tenant", "samples": 7}
    body = {"model": "m", "input_tokens": 9, "output_tokens": output, "currency": "EUR",
            "start_eta_s": None, "finish_eta_s": 1.5, "later": 1} | costs  # fmt: skip

    found = use(
        lambda request: httpx.Response(200, json=body),
        lambda client: client.estimate(model="m", prompt="p"),
    )

    assert found.output_tokens.p90 == 5
    assert found.cost["flex"].p90_micros == 2
    assert (found.currency, found.start_eta_s, found.finish_eta_s) == ("EUR", None, 1.5)


def test_estimate_without_history_has_no_lengths(use: Either) -> None:
    body = {"model": "m", "input_tokens": 9, "output_tokens": None, "tiers": {}}

    found = use(
        lambda request: httpx.Response(200, json=body),
        lambda client: client.estimate(model="m", prompt="p"),
    )

    assert (found.output_tokens, found.cost) == (None, {})
