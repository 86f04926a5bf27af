"""One request or more for every route of the API that make it answer, or read, as much as it may.

`own_the_most` writes what they ask for; `largest_requests` lists them by method and path, so that
a route without any is found. No pytest in here: benchmarks use it too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
import orjson

from tests.support.largest import Answer, Owner

Route = tuple[str, str]

DAY_S = 86_400
NO_UUID = "0" * 32
# A client that isn't answered by then goes: what is to be measured happens before.
PATIENCE_S = 3.0

_CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "%s"}}\n</tool_call>'
_WORDS = "word " * 200_000  # just under a MiB, as all bodies here
_PARTS = [{"role": "user", "content": [{"type": "text", "text": "x"}] * 250} for _ in range(39)]
_TURNS = [{"role": "user", "content": "many words " * 30} for _ in range(2_048)]
_STRANGERS = [{"role": "user", "content": "x"} | {f"k{n}": n for n in range(9)}] * 2_000
_ARGUMENTS = json.dumps({"a": list(range(8_000))})
_CALLS = [{"role": "assistant", "tool_calls": [
    {"id": "c", "type": "function", "function": {"name": "f", "arguments": _ARGUMENTS}}
    for _ in range(18)
]}, {"role": "user", "content": "x"}]  # fmt: skip
_CALL_ITEMS = [
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": _ARGUMENTS}
    for _ in range(18)
]
_SCHEMA = {
    "type": "object",
    "properties": {f"property_{n}": {"type": "string", "maxLength": 9} for n in range(3_000)},
}
_TOOLS = [
    {"type": "function", "function": {"name": f"f{n}", "description": "d" * 5_000, "parameters": {
        "type": "object", "properties": {f"p{m}": {"type": "string"} for m in range(40)}}}}
    for n in range(128)
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """How much the tenant owns."""

    num_tokens: int = 3_500  # of each of 8 choices
    num_jobs: int = 100
    num_files: int = 10_000
    num_settled: int = 9_999
    num_turns: int = 1_000


@dataclass(frozen=True, slots=True)
class Belongings:
    """Ids as clients know them."""

    model: str
    ids: dict[str, str] = field(default_factory=dict)
    settled_at: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent; `body` is JSON, or bytes as they are."""

    path: str
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    name: str = ""

    def content(self) -> bytes | None:
        return self.body if self.body is None or isinstance(self.body, bytes) else _json(self.body)


def own_the_most(owner: Owner, size: Size) -> Belongings:
    """Write all that the requests ask for."""
    many = Answer(num_tokens=size.num_tokens, num_choices=8, top_logprobs=5)
    one = Answer(num_tokens=size.num_tokens * 8, num_choices=1, top_logprobs=5)
    calls = _CALL % ("x" * 40) * (size.num_tokens // 10)
    calling = Answer(num_tokens=size.num_tokens, num_choices=8, text=calls)
    call = Answer(num_tokens=size.num_tokens, num_choices=1, text=_CALL % ("x" * 200_000))
    asked = {"model": owner.model, "stream_options": {"include_usage": True}}
    items = [{"role": "user", "content": "word " * 6} for _ in range(2_048)]
    jobs = {
        "job": owner.jobs("job", many, size.num_jobs)[-1],
        "calls": owner.job("job", calling, tool_format="hermes"),
        "chat": owner.job("chat", many, request=asked),
        "chat_calls": owner.job("chat", calling, tool_format="hermes", request=asked),
        "completion": owner.job("completion", many, request=asked | {"prompt": "x", "echo": True}),
        "response": owner.job("response", one, request=asked | {"input": items}),
        "response_call": owner.job(
            "response", call, tool_format="hermes", request=asked | {"input": "x"}
        ),
        "turns": owner.response_chain(size.num_turns, "x " * 2_000, Answer(
            num_tokens=800, num_choices=1)),
        "turns_of_items": owner.response_chain(40, items, Answer(num_tokens=800, num_choices=1)),
    }  # fmt: skip
    settled_at = int(time.time()) // DAY_S * DAY_S - DAY_S
    owner.files(size.num_files)
    owner.batches(100)
    owner.usage(size.num_settled, at=settled_at)
    return Belongings(owner.model, {k: _id(k, v) for k, v in jobs.items()}, settled_at)


def largest_requests(own: Belongings) -> dict[Route, list[Request]]:
    """By method and path of every route."""
    ids = own.ids
    chat, completions = "/v1/chat/completions", "/v1/completions"
    responses, hooks = "/v1/responses", "/v1/webhook_endpoints"
    return {
        ("GET", "/openapi.json"): [Request("/openapi.json")],
        ("GET", "/livez"): [Request("/livez")],
        ("GET", "/readyz"): [Request("/readyz")],
        ("POST", "/v1/jobs"): list(_bodies("/v1/jobs", own)),
        ("GET", "/v1/jobs"): [Request("/v1/jobs?limit=100")],
        ("GET", "/v1/jobs/{job_id}"): [
            Request(f"/v1/jobs/{ids['job']}"),
            Request(f"/v1/jobs/{ids['calls']}"),
        ],
        ("POST", "/v1/jobs/{job_id}/cancel"): [Request(f"/v1/jobs/{ids['job']}/cancel", b"")],
        ("DELETE", "/v1/jobs/{job_id}"): [Request(f"/v1/jobs/job_{NO_UUID}")],
        ("GET", "/v1/jobs/{job_id}/events"): [
            Request(f"/v1/jobs/{ids['job']}/events"),
            Request(f"/v1/jobs/{ids['calls']}/events"),
            Request(f"/v1/jobs/{ids['job']}/events?starting_after=20000", name="resumed"),
        ],
        ("POST", chat): list(_bodies(chat, own)),
        ("GET", f"{chat}/{{completion_id}}"): [
            Request(f"{chat}/{ids['chat']}"),
            Request(f"{chat}/{ids['chat_calls']}"),
        ],
        ("DELETE", f"{chat}/{{completion_id}}"): [Request(f"{chat}/chatcmpl-{NO_UUID}")],
        ("GET", f"{chat}/{{completion_id}}/events"): [
            Request(f"{chat}/{ids['chat']}/events"),
            Request(f"{chat}/{ids['chat_calls']}/events"),
        ],
        ("POST", completions): list(_bodies(completions, own)),
        ("GET", f"{completions}/{{completion_id}}"): [
            Request(f"{completions}/{ids['completion']}")
        ],
        ("DELETE", f"{completions}/{{completion_id}}"): [Request(f"{completions}/cmpl-{NO_UUID}")],
        ("GET", f"{completions}/{{completion_id}}/events"): [
            Request(f"{completions}/{ids['completion']}/events")
        ],
        ("POST", responses): [*_bodies(responses, own), *_chained(responses, own)],
        ("POST", f"{responses}/input_tokens"): [
            *_bodies(f"{responses}/input_tokens", own),
            *_chained(f"{responses}/input_tokens", own),
        ],
        ("GET", f"{responses}/{{response_id}}"): [
            Request(f"{responses}/{ids['response']}"),
            Request(f"{responses}/{ids['response_call']}"),
            Request(f"{responses}/{ids['response']}?stream=true", name="streamed"),
            Request(f"{responses}/{ids['response_call']}?stream=true", name="streamed call"),
        ],
        ("GET", f"{responses}/{{response_id}}/input_items"): [
            Request(f"{responses}/{ids['response']}/input_items?limit=100")
        ],
        ("POST", f"{responses}/{{response_id}}/cancel"): [
            Request(f"{responses}/{ids['response']}/cancel", b"")
        ],
        ("DELETE", f"{responses}/{{response_id}}"): [
            Request(f"{responses}/{ids['response_call']}")
        ],
        ("POST", "/v1/files"): [_upload()],
        ("GET", "/v1/files"): [Request("/v1/files")],
        ("GET", "/v1/files/{file_id}"): [Request(f"/v1/files/file-{NO_UUID}")],
        ("GET", "/v1/files/{file_id}/content"): [Request(f"/v1/files/file-{NO_UUID}/content")],
        ("DELETE", "/v1/files/{file_id}"): [Request(f"/v1/files/file-{NO_UUID}")],
        ("POST", "/v1/batches"): list(_bodies("/v1/batches", own)),
        ("GET", "/v1/batches"): [Request("/v1/batches?limit=100")],
        ("GET", "/v1/batches/{batch_id}"): [Request(f"/v1/batches/batch_{NO_UUID}")],
        ("POST", "/v1/batches/{batch_id}/cancel"): [
            Request(f"/v1/batches/batch_{NO_UUID}/cancel", b"")
        ],
        ("DELETE", "/v1/batches/{batch_id}"): [Request(f"/v1/batches/batch_{NO_UUID}")],
        ("GET", "/v1/models"): [Request("/v1/models")],
        ("GET", "/v1/models/{model:path}"): [Request(f"/v1/models/{own.model}")],
        ("POST", "/v1/estimate"): list(_bodies("/v1/estimate", own)),
        ("GET", "/v1/usage"): [Request("/v1/usage")],
        ("GET", "/v1/usage/jobs"): [
            Request("/v1/usage/jobs?limit=100"),
            Request(f"/v1/usage/jobs?format=csv&start_time={own.settled_at}", name="csv"),
        ],
        ("GET", "/v1/organization/usage/completions"): list(_reports("usage/completions", own)),
        ("GET", "/v1/organization/costs"): list(_reports("costs", own)),
        ("GET", "/v1/webhook_event_types"): [Request("/v1/webhook_event_types")],
        ("POST", hooks): list(_bodies(hooks, own)),
        ("GET", hooks): [Request(f"{hooks}?limit=100")],
        ("GET", f"{hooks}/{{endpoint_id}}"): [Request(f"{hooks}/we_{NO_UUID}")],
        ("POST", f"{hooks}/{{endpoint_id}}"): list(_bodies(f"{hooks}/we_{NO_UUID}", own)),
        ("DELETE", f"{hooks}/{{endpoint_id}}"): [Request(f"{hooks}/we_{NO_UUID}")],
        ("POST", f"{hooks}/{{endpoint_id}}/rotate_secret"): list(
            _bodies(f"{hooks}/we_{NO_UUID}/rotate_secret", own)
        ),
        ("POST", f"{hooks}/{{endpoint_id}}/test"): list(_bodies(f"{hooks}/we_{NO_UUID}/test", own)),
        ("GET", f"{hooks}/{{endpoint_id}}/deliveries"): [
            Request(f"{hooks}/we_{NO_UUID}/deliveries?limit=100")
        ],
        ("POST", f"{hooks}/{{endpoint_id}}/deliveries/{{delivery_id}}/resend"): [
            Request(f"{hooks}/we_{NO_UUID}/deliveries/wd_{NO_UUID}/resend", b"")
        ],
    }


def send(
    client: httpx.Client, route: Route, request: Request, *, patience_s: float = PATIENCE_S
) -> int:
    """Send it and throw the answer away as it comes: the status, 0 where none came in time."""
    content = request.content()
    headers = {"Content-Type": "application/json"} | request.headers
    ends_at = time.monotonic() + 60
    try:
        with client.stream(
            route[0], request.path, content=content, headers=headers, timeout=patience_s
        ) as answer:
            for _ in answer.iter_raw():
                if time.monotonic() > ends_at:
                    raise TimeoutError(f"{route} {request.name}: no end in 60 s")
            return answer.status_code
    except httpx.ReadTimeout:
        return 0


def _bodies(path: str, own: Belongings) -> Iterator[Request]:
    """Legal or not: a mistake may cost as much to find."""
    model = {"model": own.model}
    is_response = path.startswith("/v1/responses")
    text, turns = ("input", "input") if is_response else ("prompt", "messages")
    short = {**model, text: "x"}
    unknown = {f"unknown_{n}": n for n in range(23_000)}
    chats: dict[str, Any] = {
        "turns": _TURNS,
        "parts": _PARTS,
        "calls": _CALL_ITEMS if is_response else _CALLS,
        "mistakes": [{"role": "user", "content": 7}] * 9_000,
        "unknown inside": [{"role": "user", "content": "x", **unknown}],
        "unknown everywhere": _STRANGERS,
    }
    bodies: dict[str, Any] = {name: {**model, turns: chat} for name, chat in chats.items()} | {
        "words": {**model, text: _WORDS},
        "words of a chat": {**model, turns: [{"role": "user", "content": _WORDS}]},
        "escapes": {**model, text: "\\u0000 " * 100_000},
        "control tokens": {**model, text: "<|end|>" * 140_000},
        "token ids": {**model, "prompt": [n % 200 + 10 for n in range(49_000)]},
        "tools": {**model, turns: _TURNS[:1], "tools": _TOOLS, "tool_choice": "required"},
        "schema": {**short, "structured_outputs": {"json": _SCHEMA}},
        "bias": {**short, "logit_bias": {str(n + 10): 1.0 for n in range(300)}},
        "biases": {**short, "logit_bias": {f"x{n}": "x" for n in range(20_000)}},
        "stops": {**short, "stop": [7] * 40_000},
        "unknown": {**short, **unknown},
        "nested": {**short, "unknown": _nested()},
        "long name": {**short, "model": _WORDS},
        "metadata": {**short, "metadata": {f"k{n}": "v" for n in range(20_000)}},
    }
    for name, body in bodies.items():
        yield Request(path, body, name=name)
    yield Request(path, b"[" + b"1," * 500_000, name="broken")
    yield Request(path, b'{"a":[' + b"[],{}," * 160_000 + b"1]}", name="too many values")


def _chained(path: str, own: Belongings) -> Iterator[Request]:
    for name in ("turns", "turns_of_items"):
        body = {"model": own.model, "input": "x", "previous_response_id": own.ids[name]}
        yield Request(path, body, name=name)


def _reports(path: str, own: Belongings) -> Iterator[Request]:
    """All that one page may hold."""
    groups = "&".join(f"group_by={name}" for name in ("user_id", "api_key_id"))
    day = f"start_time={own.settled_at}&end_time={own.settled_at + DAY_S}"
    for format_ in ("json", "csv"):
        query = f"{day}&{groups}&format={format_}"
        yield Request(f"/v1/organization/{path}?{query}", name=format_)
    if path == "costs":
        query = f"start_time={own.settled_at}&limit=180"
        yield Request(f"/v1/organization/{path}?{query}", name="line items")
        return
    query = f"{day}&bucket_width=1m&limit=1440"
    yield Request(f"/v1/organization/{path}?{query}", name="minutes")


def _upload() -> Request:
    head = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
    file = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    body = head + file + b"x" * (32 << 20) + b"\r\n--b--\r\n"
    return Request("/v1/files", body, {"Content-Type": "multipart/form-data; boundary=b"})


def _nested() -> Any:
    """As deep as may be, and as wide as may be there."""
    value: Any = list(range(40_000))
    for _ in range(28):
        value = {"a": value}
    return value


def _json(body: Any) -> bytes:
    return orjson.dumps(body)


def _id(name: str, job_id: UUID) -> str:
    prefixes = {"chat": "chatcmpl-", "completion": "cmpl-", "response": "resp_", "turns": "resp_"}
    return prefixes.get(name.partition("_")[0], "job_") + job_id.hex
