"""Text that Postgres can't hold, where a client may put some: stored, or refused as its fault."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
JOB = {"model": "tiny", "prompt": "hi", "max_tokens": 4}
RESPONSE = {"model": "tiny", "input": "hi", "background": True}
BATCH = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
ENDPOINT = {"url": "https://example.com/", "events": ["batch.failed"]}
UGLY = ("a\0b", "a\ud83db")

FIELDS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("/v1/chat/completions", CHAT, "user"),
    ("/v1/chat/completions", CHAT, "model"),
    ("/v1/completions", JOB, "user"),
    ("/v1/jobs", JOB, "user"),
    ("/v1/jobs", JOB, "model"),
    ("/v1/responses", RESPONSE, "user"),
    ("/v1/responses", RESPONSE, "previous_response_id"),
    ("/v1/responses", RESPONSE, "instructions"),
    ("/v1/batches", BATCH | {"input_file_id": "file-1"}, "completion_window"),
    ("/v1/batches", BATCH, "input_file_id"),
    ("/v1/webhook_endpoints", ENDPOINT, "url"),
    ("/v1/webhook_endpoints", ENDPOINT, "name"),
)
PATHS = (
    "/v1/files?purpose=%00",
    "/v1/files?after=%00",
    "/v1/jobs?status=%00",
    "/v1/jobs?after=%ED%A0%BD",
    "/v1/batches?after=%00",
    "/v1/batches/%00",
    "/v1/files/%00",
    "/v1/jobs/%ED%A0%BD",
    "/v1/models/%00",
)


async def test_in_fields_and_metadata_of_bodies(http: httpx.AsyncClient) -> None:
    """None of these has another meaning, so all are refused."""
    file = (await _upload(http, "in.jsonl")).json()["id"]

    answers = {
        (path, field, text): await _post(http, path, body)
        for path, field, text, body in _bodies(file)
    }

    assert {case: answer.text for case, answer in answers.items() if not _is_refused(answer)} == {}


async def test_in_names_of_files_headers_and_paths(http: httpx.AsyncClient) -> None:
    """Bytes that are no text, and text that isn't to be shown, may be kept in other words."""
    answers = {
        name: await _upload(http, name)
        for name in ("a\0b.jsonl", "a\x7f\x01.jsonl", "\udcff.jsonl", "\u202e.jsonl")
    }
    for header in (b"user-agent", b"idempotency-key", b"x-client-request-id"):
        headers = [(header, b"\xff\xed\xa0\xbd\x80")]
        answers[header.decode()] = await http.post("/v1/jobs", json=JOB, headers=headers)
    refused = {path: await http.get(path) for path in PATHS}

    failed = {
        case: answer.text
        for case, answer in answers.items()
        if not (answer.is_success or _is_refused(answer))
    }
    assert failed == {}
    assert {path: answer.text for path, answer in refused.items() if not _is_refused(answer)} == {}


def _bodies(file: str) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """(path, field, text, body) of each case."""
    with_metadata: tuple[tuple[str, dict[str, Any]], ...] = (
        ("/v1/chat/completions", CHAT),
        ("/v1/jobs", JOB),
        ("/v1/responses", RESPONSE),
        ("/v1/batches", BATCH | {"input_file_id": file}),
    )
    for text in UGLY:
        for path, body, field in FIELDS:
            yield path, field, text, body | {field: text}
        for path, body in with_metadata:
            yield path, "metadata key", text, body | {"metadata": {text: "value"}}
            yield path, "metadata value", text, body | {"metadata": {"key": text}}


def _is_refused(answer: httpx.Response) -> bool:
    """In OpenAI's shape, by a code that says the client is to change something."""
    if answer.status_code not in (400, 404):
        return False
    error = answer.json()["error"]
    return bool(error["message"] and error["type"])


async def _post(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> httpx.Response:
    """With escapes, so that the JSON is valid."""
    headers = {"content-type": "application/json"}
    return await http.post(path, content=json.dumps(body), headers=headers, timeout=5.0)


async def _upload(http: httpx.AsyncClient, name: str) -> httpx.Response:
    """By hand: no client writes such a name."""
    head = f'--x\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    line = json.dumps({"custom_id": "1", "url": "/v1/chat/completions", "body": CHAT})
    purpose = '\r\n--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n'
    content = (head + line + purpose).encode(errors="surrogateescape")
    headers = {"content-type": "multipart/form-data; boundary=x"}
    return await http.post("/v1/files", content=content, headers=headers)
