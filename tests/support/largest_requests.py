"""One request or more for every route of the API that make it answer, or read, as much as it may.

`belongings.py` writes what they ask for; `largest_requests` lists them by method and path, so that
a route without any is found. Each says how it is to be answered, so that one that finds nothing is
found too. No pytest in here: benchmarks use it too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from tasks.webhook_events import WEBHOOK_EVENTS
from tests.support.belongings import DAY_S, Belongings
from tests.support.largest_bodies import UPLOAD_TYPE, bodies_of, upload
from tests.support.largest_others import HOOK_URL, METADATA

Route = tuple[str, str]

# A client that may be left without an answer goes by then: what is to be measured happens before.
PATIENCE_S = 3.0
LONG_PATIENCE_S = 60.0  # of one that is answered
NO_ANSWER = 0  # in time

OK = frozenset({200})
REFUSED = frozenset({400, 413})
READ = OK | REFUSED  # bodies are legal or not
ASKED = READ | {202, NO_ANSWER}  # without workers nobody answers


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent; `body` is JSON, or bytes as they are. A `*` of the path is an id of `each`."""

    path: str
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    each: Sequence[str] = ()
    answers: frozenset[int] = OK  # how it may be answered

    def content(self) -> bytes | None:
        is_raw = self.body is None or isinstance(self.body, bytes)
        return self.body if is_raw else orjson.dumps(self.body)

    def path_of(self, nth: int) -> str:
        return self.path.replace("*", self.each[nth]) if self.each else self.path


def largest_requests(own: Belongings) -> dict[Route, list[Request]]:
    """By method and path of every route."""
    ids, each = own.ids, own.each
    chat, completions = "/v1/chat/completions", "/v1/completions"
    responses = "/v1/responses"
    return {
        ("GET", "/openapi.json"): [Request("/openapi.json")],
        ("GET", "/livez"): [Request("/livez")],
        ("GET", "/ping"): [Request("/ping")],
        ("GET", "/version"): [Request("/version")],
        ("GET", "/health"): [Request("/health", answers=frozenset({200, 503}))],
        ("GET", "/readyz"): [Request("/readyz", answers=frozenset({200, 503}))],
        ("POST", "/v1/jobs"): list(_bodies("/v1/jobs", own)),
        ("GET", "/v1/jobs"): [Request("/v1/jobs?limit=100")],
        ("GET", "/v1/jobs/{job_id}"): [
            Request(f"/v1/jobs/{ids['job']}"),
            Request(f"/v1/jobs/{ids['calls']}"),
        ],
        ("POST", "/v1/jobs/{job_id}/cancel"): [Request(f"/v1/jobs/{ids['job']}/cancel", b"")],
        ("DELETE", "/v1/jobs/{job_id}"): [Request("/v1/jobs/*", each=each["job_each"])],
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
        ("DELETE", f"{chat}/{{completion_id}}"): [Request(f"{chat}/*", each=each["chat_each"])],
        ("GET", f"{chat}/{{completion_id}}/events"): [
            Request(f"{chat}/{ids['chat']}/events"),
            Request(f"{chat}/{ids['chat_calls']}/events"),
        ],
        ("POST", completions): list(_bodies(completions, own)),
        ("GET", f"{completions}/{{completion_id}}"): [
            Request(f"{completions}/{ids['completion']}")
        ],
        ("DELETE", f"{completions}/{{completion_id}}"): [
            Request(f"{completions}/*", each=each["completion_each"])
        ],
        ("GET", f"{completions}/{{completion_id}}/events"): [
            Request(f"{completions}/{ids['completion']}/events")
        ],
        ("POST", responses): [*_bodies(responses, own), *_chained(responses, own)],
        ("POST", f"{responses}/input_tokens"): [
            *_bodies(f"{responses}/input_tokens", own, answers=READ),
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
            Request(f"{responses}/*", each=each["response_each"])
        ],
        ("POST", "/v1/files"): [Request("/v1/files", upload(), {"Content-Type": UPLOAD_TYPE})],
        ("GET", "/v1/files"): [Request("/v1/files")],
        ("GET", "/v1/files/{file_id}"): [Request(f"/v1/files/{ids['file']}")],
        ("GET", "/v1/files/{file_id}/content"): [
            Request(f"/v1/files/{ids['file']}/content"),
            Request(
                f"/v1/files/{ids['file_of_lines']}/content",
                headers={"Range": "bytes=-1"},
                name="the last of many parts",
                answers=frozenset({206}),
            ),
        ],
        ("DELETE", "/v1/files/{file_id}"): [Request("/v1/files/*", each=each["file_each"])],
        ("POST", "/v1/batches"): [
            *_bodies("/v1/batches", own, answers=REFUSED),
            Request("/v1/batches", _batch(own), name="legal"),
        ],
        ("GET", "/v1/batches"): [Request("/v1/batches?limit=100")],
        ("GET", "/v1/batches/{batch_id}"): [Request(f"/v1/batches/{ids['batch']}")],
        ("POST", "/v1/batches/{batch_id}/cancel"): [
            Request("/v1/batches/*/cancel", b"", each=each["batch_cancelled"]),
            Request(f"/v1/batches/{ids['batch']}/cancel", b"", name="over"),
        ],
        ("DELETE", "/v1/batches/{batch_id}"): [
            Request("/v1/batches/*", each=each["batch_deleted"])
        ],
        ("GET", "/v1/models"): [Request("/v1/models")],
        ("GET", "/v1/models/{model:path}"): [Request(f"/v1/models/{own.model}")],
        ("POST", "/v1/estimate"): list(_bodies("/v1/estimate", own, answers=READ)),
        ("GET", "/v1/usage"): [Request("/v1/usage")],
        ("GET", "/v1/usage/jobs"): [
            Request("/v1/usage/jobs?limit=100"),
            Request(f"/v1/usage/jobs?format=csv&start_time={own.settled_at}", name="csv"),
        ],
        ("GET", "/v1/organization/usage/completions"): list(_reports("usage/completions", own)),
        ("GET", "/v1/organization/costs"): list(_reports("costs", own)),
        ("GET", "/v1/webhook_event_types"): [Request("/v1/webhook_event_types")],
        **_of_webhooks(own),
    }


def _of_webhooks(own: Belongings) -> dict[Route, list[Request]]:
    hooks = "/v1/webhook_endpoints"
    one, hook = f"{hooks}/{own.ids['hook']}", f"{hooks}/{{endpoint_id}}"
    legal = {"name": "n" * 256, "url": HOOK_URL, "event_types": list(WEBHOOK_EVENTS)}
    sample = {"event_type": WEBHOOK_EVENTS[0]}
    return {
        ("GET", "/v1/webhook_event_types"): [Request("/v1/webhook_event_types")],
        # Before one is made: there may be few.
        ("DELETE", hook): [Request(f"{hooks}/*", each=own.each["hook_each"])],
        ("POST", hooks): [
            *_bodies(hooks, own, answers=REFUSED),
            Request(hooks, legal, name="legal"),
        ],
        ("GET", hooks): [Request(f"{hooks}?limit=100")],
        ("GET", hook): [Request(one)],
        ("POST", hook): [*_bodies(one, own, answers=READ), Request(one, legal, name="legal")],
        ("POST", f"{hook}/rotate_secret"): list(_bodies(f"{one}/rotate_secret", own, answers=READ)),
        ("POST", f"{hook}/test"): [
            *_bodies(f"{one}/test", own, answers=REFUSED),
            Request(f"{one}/test", sample, name="legal", answers=frozenset({NO_ANSWER})),
        ],
        ("GET", f"{hook}/deliveries"): [Request(f"{one}/deliveries?limit=100")],
        ("POST", f"{hook}/deliveries/{{delivery_id}}/resend"): [
            Request(f"{one}/deliveries/{own.ids['delivery']}/resend", b"")
        ],
    }


def send(
    client: httpx.Client,
    route: Route,
    request: Request,
    *,
    nth: int = 0,
) -> int:
    """Send it for the nth time and throw the answer away as it comes: the status, or NO_ANSWER.

    Raises AssertionError for an answer that it isn't to have.
    """
    may_wait = NO_ANSWER in request.answers
    status = _status(client, route, request, nth, PATIENCE_S if may_wait else LONG_PATIENCE_S)
    assert status in request.answers, f"{route} {request.name}: {status}"
    return status


def _status(
    client: httpx.Client, route: Route, request: Request, nth: int, patience_s: float
) -> int:
    headers = {"Content-Type": "application/json", **request.headers}
    ends_at = time.monotonic() + LONG_PATIENCE_S
    try:
        with client.stream(
            route[0],
            request.path_of(nth),
            content=request.content(),
            headers=headers,
            timeout=patience_s,
        ) as answer:
            for _ in answer.iter_raw():
                if time.monotonic() > ends_at:
                    raise TimeoutError(f"{route} {request.name}: no end")
            return answer.status_code
    except httpx.ReadTimeout:
        return NO_ANSWER


def _bodies(path: str, own: Belongings, *, answers: frozenset[int] = ASKED) -> Iterator[Request]:
    for name, body in bodies_of(path, own.model).items():
        yield Request(path, body, name=name, answers=answers)


def _batch(own: Belongings) -> dict[str, Any]:
    return {
        "input_file_id": own.ids["file_input"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": METADATA,
    }


def _chained(path: str, own: Belongings) -> Iterator[Request]:
    """Long conversations, as they are or cut to what fits. Reading one may take seconds, so nobody
    waits for what comes of it, and it is waited for.
    """
    for name in ("turns", "turns_of_items"):
        body: dict[str, Any] = {"model": own.model, "input": "x"}
        body["previous_response_id"] = own.ids[name]
        if path == "/v1/responses":
            body["background"] = True
        yield Request(path, body, name=name, answers=READ)
        yield Request(path, body | {"truncation": "auto"}, name=f"{name}, cut", answers=OK)


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
