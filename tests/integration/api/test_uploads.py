"""Uploads that end early, for whatever reason: the right answer, and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from api import middleware
from api.files import upload as upload_module
from store.file_contents import PartWriter
from store.pools import DictConnection
from tests.integration.api.conftest import Tenant, serve_api
from tests.support.waiting import until

MIB = 1 << 20
BOUNDARY = "frontier"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def _part(name: str, value: bytes, filename: str | None = None) -> bytes:
    disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
    head = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n"
    return head.encode() + value + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
PURPOSE = _part("purpose", b"batch")
FILE = _part("file", b"{}\n", "in.jsonl")


def _expiry(anchor: bytes, seconds: bytes) -> bytes:
    return _part("expires_after[anchor]", anchor) + _part("expires_after[seconds]", seconds)


BAD_FORMS: dict[str, tuple[bytes, str | None]] = {
    "nothing": (b"", None),
    "no parts": (END, "purpose"),
    "no purpose": (FILE + END, "purpose"),
    "no file": (PURPOSE + END, "file"),
    "empty file": (PURPOSE + _part("file", b"", "in.jsonl") + END, "file"),
    "a field instead of a file": (PURPOSE + _part("file", b"{}") + END, "file"),
    "a nameless file": (PURPOSE + _part("file", b"{}", "../") + END, "file"),
    "two files": (PURPOSE + FILE + FILE + END, "file"),
    "another purpose": (_part("purpose", b"assistants") + FILE + END, "purpose"),
    "our purpose": (FILE + _part("purpose", b"batch_output") + END, "purpose"),
    "no anchor": (
        PURPOSE + _part("expires_after[seconds]", b"3600") + FILE + END,
        "expires_after[anchor]",
    ),
    "another anchor": (
        PURPOSE + _expiry(b"last_active_at", b"3600") + FILE + END,
        "expires_after[anchor]",
    ),
    "no seconds": (
        PURPOSE + _part("expires_after[anchor]", b"created_at") + FILE + END,
        "expires_after[seconds]",
    ),
    "too short": (
        PURPOSE + _expiry(b"created_at", b"3599") + FILE + END,
        "expires_after[seconds]",
    ),
    "too long": (
        PURPOSE + _expiry(b"created_at", b"2592001") + FILE + END,
        "expires_after[seconds]",
    ),
    "not a number": (
        PURPOSE + _expiry(b"created_at", b"1e4") + FILE + END,
        "expires_after[seconds]",
    ),
    "a long field": (PURPOSE + _part("note", b"x" * 2_000) + FILE + END, None),
    "many fields": (PURPOSE + _part("note", b"x") * 20 + FILE + END, None),
    "no end": (PURPOSE + FILE, None),
    "cut in the file": ((PURPOSE + FILE)[:-6], None),
    "a nameless part": (
        f"--{BOUNDARY}\r\nContent-Type: text/plain\r\n\r\nx\r\n".encode() + END,
        None,
    ),
    "no form at all": (b'{"purpose": "batch"}', None),
}


def _left(owner: DictConnection, folder: Path) -> tuple[int, int, list[str]]:
    """(files, uploads, objects)."""
    row = owner.execute(
        "SELECT (SELECT count(*) FROM files) AS files,"
        " (SELECT count(*) FROM file_uploads) AS uploads"
    ).fetchone()
    assert row is not None
    objects = [path.name for path in folder.rglob("*") if path.is_file()]
    return row["files"], row["uploads"], objects


NOTHING: tuple[int, int, list[str]] = (0, 0, [])


async def test_bad_forms_are_refused_and_leave_nothing(
    http: httpx.AsyncClient, owner: DictConnection, files_folder: Path
) -> None:
    answers = {
        name: await http.post("/v1/files", content=body, headers=HEADERS)
        for name, (body, _) in BAD_FORMS.items()
    }

    found = {name: (a.status_code, a.json()["error"]["param"]) for name, a in answers.items()}
    assert found == {name: (400, param) for name, (_, param) in BAD_FORMS.items()}
    assert _left(owner, files_folder) == NOTHING


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "multipart/form-data"},
        {"Content-Type": f"multipart/form-data; boundary={'x' * 300}"},
        HEADERS | {"Content-Encoding": "gzip"},
    ],
)
async def test_bad_headers_are_refused(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await http.post("/v1/files", content=PURPOSE + FILE + END, headers=headers)

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=10001", "order=up", "purpose=vision", "after=x"]
)
async def test_bad_queries_are_refused(http: httpx.AsyncClient, query: str) -> None:
    answer = await http.get(f"/v1/files?{query}")

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"


async def test_the_order_of_fields_does_not_matter_and_unknown_ones_are_ignored(
    http: httpx.AsyncClient,
) -> None:
    other = _part("note", b"x") + _part("attachment", b"y" * 5_000, "y.bin")
    body = FILE + other + _expiry(b"created_at", b"3600") + PURPOSE + END

    answer = await http.post("/v1/files", content=body, headers=HEADERS)

    assert answer.status_code == 200
    assert (answer.json()["bytes"], answer.json()["purpose"]) == (3, "batch")


async def _sized(num_bytes: int) -> AsyncIterator[bytes]:
    """A form with a file of so many bytes."""
    head, _, tail = _part("file", b"|", "in.jsonl").partition(b"|")
    yield PURPOSE + head
    for _ in range(num_bytes // MIB):
        yield b"x" * MIB
    yield b"x" * (num_bytes % MIB)
    yield tail + END


async def _connect(api_url: str, tenant: Tenant, num_bytes: int) -> Connection:
    """A connection on which an upload has announced so many bytes."""
    address = urlsplit(api_url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: {num_bytes}\r\n"
        f"Authorization: {tenant.headers['Authorization']}\r\n"
        f"Content-Type: {HEADERS['Content-Type']}\r\n\r\n"
    )
    writer.write(head.encode())
    await writer.drain()
    return reader, writer


async def test_a_file_that_says_it_is_too_large_is_refused(
    api_url: str,
    tenant: Tenant,
    owner: DictConnection,
    files_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(middleware, "_DRAIN_S", 0.1)
    reader, writer = await _connect(api_url, tenant, 201 * MIB)

    status_line = await reader.readline()

    writer.close()
    assert status_line.split()[1] == b"413"
    assert _left(owner, files_folder) == NOTHING


async def test_a_file_that_turns_out_too_large_is_refused(
    http: httpx.AsyncClient,
    owner: DictConnection,
    files_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upload_module, "MAX_FILE_BYTES", 2 * MIB)

    fits = await http.post("/v1/files", content=_sized(2 * MIB), headers=HEADERS)
    before = _left(owner, files_folder)
    answer = await http.post("/v1/files", content=_sized(2 * MIB + 1), headers=HEADERS)

    assert (fits.status_code, fits.json()["bytes"]) == (200, 2 * MIB)
    assert answer.status_code == 413
    assert _left(owner, files_folder) == before


async def test_other_routes_keep_their_bound(http: httpx.AsyncClient) -> None:
    answers = [
        await http.post("/v1/jobs", content=b" " * (MIB + 1)),
        await http.post("/v1/files/x", content=b" " * (MIB + 1)),
        await http.request("GET", "/v1/files", content=b" " * (MIB + 1)),
    ]

    assert [answer.status_code for answer in answers] == [413, 413, 413]


async def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(
    api_url: str, tenant: Tenant, owner: DictConnection, files_folder: Path
) -> None:
    _, writer = await _connect(api_url, tenant, 10 * MIB)
    writer.write((PURPOSE + FILE)[:-2] + b"x" * 3 * MIB)
    await writer.drain()
    await until(lambda: _left(owner, files_folder)[2], what="the first stored bytes")

    writer.close()

    await until(lambda: _left(owner, files_folder) == NOTHING, what="the clean-up")


@pytest.mark.parametrize("limit", ["UPLOAD_IDLE_S", "UPLOAD_MAX_S"])
async def test_a_client_that_stalls_or_is_too_slow_is_cut_off(
    *,
    api_url: str,
    tenant: Tenant,
    owner: DictConnection,
    files_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
) -> None:
    monkeypatch.setattr(upload_module, limit, 0.2)
    stalled = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield PURPOSE
        await stalled.wait()

    async with httpx.AsyncClient(base_url=api_url, headers=tenant.headers) as client:
        request = asyncio.create_task(client.post("/v1/files", content=body(), headers=HEADERS))
        await until(lambda: _left(owner, files_folder)[1], what="the begin of the upload")
        await until(lambda: _left(owner, files_folder) == NOTHING, what="the clean-up")
        stalled.set()
        answer = await request

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"


async def test_a_store_that_fails_is_unavailable_and_leaves_nothing(
    http: httpx.AsyncClient,
    owner: DictConnection,
    files_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_space(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PartWriter, "finish", no_space)

    answer = await http.post("/v1/files", content=PURPOSE + FILE + END, headers=HEADERS)

    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "service_unavailable"
    assert _left(owner, files_folder) == NOTHING


# Quota -------------------------------------------------------------------------------------------


@pytest.fixture
async def poor(
    environment: None, catalog: None, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a tenant that may store 2 MiB."""
    monkeypatch.setenv("MILLRACE_FILES_QUOTA_BYTES", str(2 * MIB))
    async with (
        serve_api() as url,
        httpx.AsyncClient(base_url=url, headers=tenant.headers, trust_env=False) as client,
    ):
        yield client


def _form(num_bytes: int) -> dict[str, Any]:
    file = ("in.jsonl", b"x" * num_bytes)
    return {"data": {"purpose": "batch"}, "files": {"file": file}}


async def test_a_full_store_takes_no_more_until_something_is_deleted(
    poor: httpx.AsyncClient, owner: DictConnection, files_folder: Path
) -> None:
    first = await poor.post("/v1/files", **_form(MIB + MIB // 2))

    refused = [
        await poor.post("/v1/files", **_form(MIB)),
        await poor.post("/v1/files", content=_sized(MIB), headers=HEADERS),
    ]
    left = _left(owner, files_folder)
    await poor.delete(f"/v1/files/{first.json()['id']}")
    again = await poor.post("/v1/files", **_form(MIB))

    for answer in refused:
        assert answer.status_code == 429
        assert answer.headers["x-should-retry"] == "false"
        assert answer.json()["error"]["type"] == "insufficient_quota"
        assert answer.json()["error"]["code"] == "storage_quota_exceeded"
    assert (left[0], left[1], len(left[2])) == (1, 0, 1)
    assert again.status_code == 200


async def test_uploads_at_once_never_exceed_the_quota(
    poor: httpx.AsyncClient, owner: DictConnection
) -> None:
    answers = await asyncio.gather(
        *(poor.post("/v1/files", **_form(MIB * 3 // 4)) for _ in range(8))
    )

    statuses = sorted(answer.status_code for answer in answers)
    row = owner.execute("SELECT sum(num_bytes) AS stored FROM files").fetchone()
    assert row is not None
    assert set(statuses) == {200, 429}
    assert row["stored"] <= 2 * MIB
