"""Files through the official client, and what it can't see: isolation, headers, growing files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types import FileDeleted, FileObject

from cli.stack.database import DatabaseUrls
from store.file_contents import FileContents
from store.file_output import append_part, open_output
from store.pools import DictConnection, connect
from store.tenants import create_api_key
from tasks.ids import format_file_id
from tests.integration.api.conftest import PEPPER, Tenant

LINES = b'{"custom_id": "1"}\n{"custom_id": "2"}\n'
DAY_S = 86_400


@pytest.fixture
def worker(database: DatabaseUrls) -> Iterator[DictConnection]:
    with connect(database.worker, application_name="test") as opened:
        yield opened


def _objects(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_the_official_client_stores_and_reads_a_file(client: AsyncOpenAI) -> None:
    created = await client.files.create(file=("in.jsonl", LINES), purpose="batch")

    assert isinstance(created, FileObject)
    FileObject.model_validate(created.model_dump(), strict=True)
    assert created.id.startswith("file-")
    assert (created.filename, created.bytes) == ("in.jsonl", len(LINES))
    assert (created.purpose, created.status) == ("batch", "processed")
    assert created.expires_at == created.created_at + 30 * DAY_S
    assert await client.files.retrieve(created.id) == created
    assert await client.files.wait_for_processing(created.id) == created
    assert (await client.files.content(created.id)).content == LINES


async def test_the_official_client_deletes_a_file(client: AsyncOpenAI) -> None:
    created = await client.files.create(file=("in.jsonl", LINES), purpose="user_data")

    deleted = await client.files.delete(created.id)

    assert deleted == FileDeleted(id=created.id, object="file", deleted=True)
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as raised:
            await gone(created.id)
        assert raised.value.code == "file_not_found"
    assert (await client.files.list()).data == []


async def test_a_file_expires_when_its_owner_says(client: AsyncOpenAI) -> None:
    created = await client.files.create(
        file=("notes.txt", b"x"),
        purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3_600},
    )
    forever = await client.files.create(file=("notes.txt", b"x"), purpose="user_data")

    assert created.expires_at == created.created_at + 3_600
    assert forever.expires_at is None


async def test_the_official_client_pages_through_files(client: AsyncOpenAI) -> None:
    made = [
        (await client.files.create(file=(f"{number}.jsonl", LINES), purpose="batch")).id
        for number in range(5)
    ]
    data = await client.files.create(file=("data", b"x"), purpose="user_data")

    newest = [file.id async for file in client.files.list(limit=2, purpose="batch")]
    oldest = [file.id async for file in client.files.list(limit=2, order="asc")]

    assert newest == made[::-1]
    assert oldest == [*made, data.id]


async def test_a_page_says_where_the_next_begins(http: httpx.AsyncClient) -> None:
    for number in range(3):
        await http.post(
            "/v1/files", data={"purpose": "batch"}, files={"file": (f"{number}", LINES)}
        )

    first = (await http.get("/v1/files?limit=2")).json()
    second = (await http.get(f"/v1/files?limit=2&after={first['last_id']}")).json()

    assert [file["filename"] for file in first["data"]] == ["2", "1"]
    assert (first["first_id"], first["has_more"]) == (first["data"][0]["id"], True)
    assert [file["filename"] for file in second["data"]] == ["0"]
    assert second["has_more"] is False


async def test_an_expired_file_is_gone_before_it_is_swept(
    client: AsyncOpenAI, owner: DictConnection
) -> None:
    created = await client.files.create(file=("in.jsonl", LINES), purpose="batch")
    owner.execute("UPDATE files SET expires_at = now() - interval '1 second'")

    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(created.id)

    assert (await client.files.list()).data == []


async def test_another_tenants_file_is_answered_like_none(
    http: httpx.AsyncClient, api_url: str, other_tenant: Tenant
) -> None:
    upload = {"data": {"purpose": "batch"}, "files": {"file": ("in.jsonl", LINES)}}
    file_id = (await http.post("/v1/files", **upload)).json()["id"]  # type: ignore[arg-type]
    missing = "file-" + "0" * 32

    async with httpx.AsyncClient(base_url=api_url, headers=other_tenant.headers) as other:
        for method, suffix in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            theirs = await other.request(method, f"/v1/files/{file_id}{suffix}")
            none = await other.request(method, f"/v1/files/{missing}{suffix}")
            nonsense = await other.request(method, f"/v1/files/x{suffix}")
            assert theirs.status_code == none.status_code == nonsense.status_code == 404
            assert theirs.content == none.content == nonsense.content
            assert theirs.json()["error"]["code"] == "file_not_found"
        assert (await other.get("/v1/files")).json()["data"] == []
        assert (await other.get(f"/v1/files?after={file_id}")).json()["data"] == []

    assert (await http.get(f"/v1/files/{file_id}/content")).content == LINES


async def test_scopes_decide_who_writes_and_who_reads(
    http: httpx.AsyncClient, api_url: str, owner: DictConnection, tenant: Tenant
) -> None:
    upload = {"data": {"purpose": "batch"}, "files": {"file": ("in.jsonl", LINES)}}
    file_id = (await http.post("/v1/files", **upload)).json()["id"]  # type: ignore[arg-type]

    statuses = {}
    for scope in ("infer:write", "jobs:read"):
        key = create_api_key(
            owner, tenant_id=tenant.id, name="k", pepper=PEPPER.encode(), scopes=[scope]
        )
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=api_url, headers=headers) as limited:
            answers = [
                await limited.get("/v1/files"),
                await limited.get(f"/v1/files/{file_id}"),
                await limited.get(f"/v1/files/{file_id}/content"),
                await limited.post("/v1/files", **upload),  # type: ignore[arg-type]
                await limited.delete(f"/v1/files/{missing_id()}"),
            ]
        statuses[scope] = [answer.status_code for answer in answers]

    assert statuses == {
        "infer:write": [403, 403, 403, 200, 404],
        "jobs:read": [200, 200, 200, 403, 403],
    }


def missing_id() -> str:
    return "file-" + "0" * 32


async def test_nothing_a_user_named_reaches_headers_or_paths(
    http: httpx.AsyncClient, files_folder: Path, tenant: Tenant
) -> None:
    name = "../../etc/pass\u202ewd;.html"

    created = await http.post(
        "/v1/files", data={"purpose": "user_data"}, files={"file": (name, b"<script>")}
    )
    content = await http.get(f"/v1/files/{created.json()['id']}/content")

    file_id = created.json()["id"]
    assert created.json()["filename"] == "passwd;.html"
    assert content.headers["content-disposition"] == f'attachment; filename="{file_id}"'
    assert content.headers["content-type"] == "application/octet-stream"
    assert content.headers["x-content-type-options"] == "nosniff"
    (stored,) = _objects(files_folder)
    parts = stored.relative_to(files_folder).parts
    assert parts[:2] == (tenant.id.hex, file_id.removeprefix("file-"))


async def test_an_output_file_can_be_read_while_it_grows(
    client: AsyncOpenAI,
    http: httpx.AsyncClient,
    worker: DictConnection,
    files_folder: Path,
    tenant: Tenant,
) -> None:
    contents = FileContents(str(files_folder))
    file_id = open_output(worker, tenant.id, filename="out.jsonl", ttl_s=3_600)
    wire_id = format_file_id(file_id)
    seen = [(await client.files.content(wire_id)).content]

    for text in (b"one\n", b"two\n" * 200_000, b"three\n"):
        writer = contents.new_part(tenant.id, file_id)
        writer.write(text)
        assert append_part(worker, tenant.id, file_id, writer.finish())
        seen.append((await client.files.content(wire_id)).content)

    assert seen == [
        b"",
        b"one\n",
        b"one\n" + b"two\n" * 200_000,
        b"one\n" + b"two\n" * 200_000 + b"three\n",
    ]
    shown = await client.files.retrieve(wire_id)
    assert (shown.purpose, shown.bytes) == ("batch_output", len(seen[-1]))
    answer = await http.get(f"/v1/files/{wire_id}/content")
    assert answer.headers["content-disposition"] == f'attachment; filename="{wire_id}.jsonl"'
    assert answer.headers["content-length"] == str(len(seen[-1]))


async def test_any_range_of_a_growing_file_can_be_read_alone(
    http: httpx.AsyncClient, worker: DictConnection, files_folder: Path, tenant: Tenant
) -> None:
    contents = FileContents(str(files_folder))
    file_id = open_output(worker, tenant.id, filename="out.jsonl", ttl_s=3_600)
    whole = b""
    for text in (b"one\n", b"two\n" * 200_000, b"three\n"):
        writer = contents.new_part(tenant.id, file_id)
        writer.write(text)
        assert append_part(worker, tenant.id, file_id, writer.finish())
        whole += text
    url, size = f"/v1/files/{format_file_id(file_id)}/content", len(whole)

    for start, end in ((0, size), (2, 6), (4, size), (500_000, 500_001), (size - 3, size)):
        answer = await http.get(url, headers={"Range": f"bytes={start}-{end - 1}"})
        assert (answer.status_code, answer.content) == (206, whole[start:end])
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert answer.headers["content-length"] == str(end - start)
    beyond = await http.get(url, headers={"Range": f"bytes={size}-"})
    assert beyond.status_code == 416
    assert beyond.headers["content-range"] == f"bytes */{size}"
    assert beyond.json()["error"]["code"] == "range_not_satisfiable"
    assert (await http.get(url)).headers["accept-ranges"] == "bytes"


async def test_contents_that_can_not_be_read_are_unavailable(
    http: httpx.AsyncClient, files_folder: Path
) -> None:
    upload = {"data": {"purpose": "batch"}, "files": {"file": ("in.jsonl", LINES)}}
    file_id = (await http.post("/v1/files", **upload)).json()["id"]  # type: ignore[arg-type]
    (stored,) = _objects(files_folder)
    stored.unlink()

    answer = await http.get(f"/v1/files/{file_id}/content")

    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "service_unavailable"
