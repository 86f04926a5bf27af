"""A server of ours with files and batches in memory; batches go on as far as a test lets them.

For the client and the commands alone: what the platform itself does is tested on the platform.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

START_DEADLINE_S = 10.0


@dataclass
class BatchServer:
    """Every line with "fail" in its custom_id fails; `num_allowed` lines end, the last one torn."""

    num_allowed: int = 1_000_000
    num_absences: int = 0  # looks at a batch that are answered with 503
    is_refusing: bool = False
    uploads: list[bytes] = field(default_factory=list)
    batches: dict[str, str] = field(default_factory=dict)  # id -> id of its input file
    is_losing_creations: bool = False  # the batch is made, and the answer is a 502
    is_limiting: bool = False  # lists of batches are refused with 429
    num_looks: int = 0
    waits_for: dict[str, str] | None = None
    knows_ranges: bool = True
    num_content_bytes: int = 0  # of results that were sent

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/files", self._upload, methods=["POST"]),
                Route("/v1/files/{id}/content", self._content),
                Route("/v1/batches", self._create, methods=["POST"]),
                Route("/v1/batches", self._list),
                Route("/v1/batches/{id}", self._get),
                Route("/v1/batches/{id}/cancel", self._cancel, methods=["POST"]),
            ]
        )

    async def _upload(self, request: Request) -> Response:
        async with request.form() as form:
            file = form["file"]
            assert not isinstance(file, str)
            content = await file.read()
            self.uploads.append(content)
            number = len(self.uploads)  # before another upload has its turn
        return JSONResponse(
            {"id": f"file-{number}", "object": "file", "bytes": len(content), "created_at": 1,
             "filename": file.filename, "purpose": "batch", "status": "processed"}
        )  # fmt: skip

    async def _create(self, request: Request) -> Response:
        file_id = (await request.json())["input_file_id"]
        new_id = f"batch_{len(self.batches) + 1}"  # before another creation has its turn
        self.batches[new_id] = file_id
        if self.is_losing_creations:
            return Response(status_code=502)
        return JSONResponse(self._batch(new_id))

    async def _get(self, request: Request) -> Response:
        self.num_looks += 1
        if self.num_absences:
            self.num_absences -= 1
            return Response(status_code=503)
        if request.path_params["id"] not in self.batches:
            error = {"message": "There is no such batch.", "type": "t", "code": "batch_not_found"}
            return JSONResponse({"error": error}, 404)
        return JSONResponse(self._batch(request.path_params["id"]))

    async def _list(self, request: Request) -> Response:
        if self.is_limiting:
            error = {"message": "Too many requests.", "type": "t", "code": "rate_limit_exceeded"}
            return JSONResponse({"error": error}, 429, headers={"Retry-After": "0"})
        newest = [*reversed(self.batches)]
        begin = newest.index(after) + 1 if (after := request.query_params.get("after")) else 0
        ids = newest[begin : begin + int(request.query_params.get("limit", 20))]
        return JSONResponse(
            {"data": [self._batch(each) for each in ids], "first_id": None,
             "last_id": ids[-1] if ids else None, "has_more": newest[-1:] != ids[-1:]}
        )  # fmt: skip

    async def _cancel(self, request: Request) -> Response:
        return JSONResponse(self._batch(request.path_params["id"]) | {"status": "cancelling"})

    async def _content(self, request: Request) -> Response:
        is_errors = request.path_params["id"] == "file-err"
        lines = [
            _answer(custom_id) for custom_id in self._ended() if is_errors == _fails(custom_id)
        ]
        content = "".join(f"{json.dumps(line)}\n" for line in lines)
        is_torn = len(self._ended()) < len(self._custom_ids())
        return self._part(request, (content[: -len(content) // 8] if is_torn else content).encode())

    def _part(self, request: Request, content: bytes) -> Response:
        """From where a range begins, if ranges are known."""
        asked = request.headers.get("range", "") if self.knows_ranges else ""
        start = int(asked.removeprefix("bytes=").removesuffix("-") or 0)
        if asked and start >= len(content):
            return Response(status_code=416)
        self.num_content_bytes += len(content) - start
        if not asked:
            return Response(content)
        range_ = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return Response(content[start:], 206, headers={"Content-Range": range_})

    def _batch(self, batch_id: str) -> dict[str, Any]:
        total, ended = len(self._custom_ids()), self._ended()
        failed = sum(map(_fails, ended))
        is_over = len(ended) == total
        batch: dict[str, Any] = {
            "id": batch_id, "object": "batch", "status": "completed" if is_over else "in_progress",
            "endpoint": "/v1/chat/completions", "input_file_id": self.batches[batch_id],
            "created_at": 1, "millrace": {"waits_for": self.waits_for},
            "errors": None, "output_file_id": "file-out", "error_file_id": "file-err",
            "request_counts": {"total": total, "completed": len(ended) - failed, "failed": failed},
        }  # fmt: skip
        if self.is_refusing:
            error = {
                "code": "invalid_json",
                "line": 3,
                "message": "This is no JSON.",
                "param": None,
            }
            batch |= {"status": "failed", "errors": {"object": "list", "data": [error]}}
            batch |= {"output_file_id": None, "error_file_id": None}
        return batch

    def _custom_ids(self) -> list[str]:
        return [json.loads(line)["custom_id"] for line in self.uploads[-1].splitlines()]

    def _ended(self) -> list[str]:
        return self._custom_ids()[: self.num_allowed]


@contextmanager
def serving(server: BatchServer) -> Iterator[str]:
    """Its URL, while it runs in a thread."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        runner = uvicorn.Server(uvicorn.Config(server.app(), log_level="warning"))
        runner.capture_signals = nullcontext  # type: ignore[assignment,method-assign]
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            deadline = time.monotonic() + START_DEADLINE_S
            while not runner.started:
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            runner.should_exit = True
            thread.join()


def requests_jsonl(*custom_ids: str) -> str:
    """An input file."""
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": "demo", "messages": messages, "max_tokens": 5}
    return "".join(
        json.dumps(
            {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
        )
        + "\n"
        for name in custom_ids
    )


def _fails(custom_id: str) -> bool:
    return "fail" in custom_id


def _answer(custom_id: str) -> dict[str, Any]:
    status = 400 if _fails(custom_id) else 200
    response = {"status_code": status, "request_id": "r", "body": {"text": "päng " * 20}}
    return {"id": f"batch_req_{custom_id}", "custom_id": custom_id, "response": response}
