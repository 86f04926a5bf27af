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

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __iter__(self) -> Iterator[bytes]:
        yield self._data
        raise httpx.ReadError("cut off")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._data
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


class Contents:
    """A file on a server; the first answers break after some bytes."""

    def __init__(self, content: bytes, *, num_cuts: int, knows_ranges: bool = True) -> None:
        self._content = content
        self._num_cuts = num_cuts
        self._knows_ranges = knows_ranges
        self.asked: list[str | None] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["accept-encoding"] == "identity"
        self.asked.append(request.headers.get("range"))
        asked = self.asked[-1] if self._knows_ranges else None
        start = int((asked or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        total = len(self._content)
        if start >= total:
            return httpx.Response(416, json={})
        is_cut = len(self.asked) <= self._num_cuts
        body = CutOff(self._content[start : start + 5]) if is_cut else self._content[start:]
        headers = {"content-length": str(total - start)}
        if asked:
            headers["content-range"] = f"bytes {start}-{total - 1}/{total}"
        return httpx.Response(206 if asked else 200, headers=headers, **_body(body))


def _body(body: bytes | CutOff) -> dict[str, Any]:
    return {"content": body} if isinstance(body, bytes) else {"stream": body}


def test_download_goes_on_where_it_was_cut_off(use: Either, tmp_path: Path) -> None:
    contents = Contents(b"something whole", num_cuts=2)
    progress: list[tuple[int, int]] = []

    use(
        contents,
        lambda client: client.files.download(
            "file-1", tmp_path / "a", progress=lambda *now: progress.append(now)
        ),
    )

    assert contents.asked == [None, "bytes=5-", "bytes=10-"]
    assert (tmp_path / "a").read_bytes() == b"something whole"
    assert progress == [(5, 15), (10, 15), (15, 15)]


def test_download_cut_off_behind_its_last_byte_is_whole(use: Either, tmp_path: Path) -> None:
    contents = Contents(b"whole", num_cuts=1)

    use(contents, lambda client: client.files.download("file-1", tmp_path / "a"))

    assert contents.asked == [None, "bytes=5-"]
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_download_starts_anew_where_ranges_are_not_known(use: Either, tmp_path: Path) -> None:
    contents = Contents(b"something whole", num_cuts=2, knows_ranges=False)

    use(contents, lambda client: client.files.download("file-1", tmp_path / "a"))

    assert len(contents.asked) == 3
    assert (tmp_path / "a").read_bytes() == b"something whole"


def test_range_that_was_not_asked_for_is_no_answer(use: Either, tmp_path: Path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if "range" not in request.headers:
            return httpx.Response(200, stream=CutOff(b"half"))
        return httpx.Response(206, content=b"x", headers={"content-range": "bytes 3-3/9"})

    with pytest.raises(APIConnectionError, match="another range"):
        use(handler, lambda client: client.files.download("file-1", tmp_path / "a"))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda: httpx.Response(404, json={}), NotFoundError),
        (lambda: httpx.Response(200, stream=CutOff(b"half")), APIConnectionError),
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
