"""A tenant that owns the largest things there are, and their ids as clients know them. No pytest in
here: benchmarks use it too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from tasks import ids as wire
from tests.support.largest import Answer, Owner
from tests.support.largest_others import Others

DAY_S = 86_400

_CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "%s"}}\n</tool_call>'
_PREFIXES = {
    "job": wire.JOB_PREFIX,
    "chat": wire.CHAT_PREFIX,
    "completion": wire.COMPLETION_PREFIX,
    "response": wire.RESPONSE_PREFIX,
    "turns": wire.RESPONSE_PREFIX,
    "file": wire.FILE_PREFIX,
    "batch": wire.BATCH_PREFIX,
    "hook": wire.ENDPOINT_PREFIX,
    "delivery": wire.DELIVERY_PREFIX,
}


@dataclass(frozen=True, slots=True)
class Size:
    """How much the tenant owns."""

    num_tokens: int = 3_500  # of each of 8 choices
    num_jobs: int = 100
    num_files: int = 10_000
    num_parts: int = 50_000  # of a file: as many as a batch may have lines
    num_settled: int = 9_999
    num_turns: int = 1_000
    num_each: int = 4  # of what a request uses up


@dataclass(frozen=True, slots=True)
class Belongings:
    """Ids as clients know them."""

    model: str
    ids: Mapping[str, str] = field(default_factory=dict)
    each: Mapping[str, Sequence[str]] = field(default_factory=dict)  # one for each time
    settled_at: int = 0


def own_the_most(owner: Owner, others: Others, size: Size) -> Belongings:
    """Write all that the requests ask for."""
    settled_at = int(time.time()) // DAY_S * DAY_S - DAY_S
    others.usage(owner.model, size.num_settled, at=settled_at)
    ids, each = _jobs(owner, size), _jobs_each(owner, size)
    more_ids, more_each = _others(others, size)
    return Belongings(
        owner.model,
        {name: _id(name, id_) for name, id_ in (ids | more_ids).items()},
        {name: [_id(name, id_) for id_ in all_] for name, all_ in (each | more_each).items()},
        settled_at,
    )


def _jobs(owner: Owner, size: Size) -> dict[str, UUID]:
    """Those that are read."""
    many = Answer(num_tokens=size.num_tokens, num_choices=8, top_logprobs=5)
    one = Answer(num_tokens=size.num_tokens * 8, num_choices=1, top_logprobs=5)
    calls = _CALL % ("x" * 40) * (size.num_tokens // 10)
    calling = Answer(num_tokens=size.num_tokens, num_choices=8, text=calls)
    call = Answer(num_tokens=size.num_tokens, num_choices=1, text=_CALL % ("x" * 200_000))
    asked = {"model": owner.model, "stream_options": {"include_usage": True}}
    items = [{"role": "user", "content": "word " * 6} for _ in range(2_048)]
    return {
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


def _jobs_each(owner: Owner, size: Size) -> dict[str, list[UUID]]:
    """Those that are deleted."""
    many = Answer(num_tokens=size.num_tokens, num_choices=8, top_logprobs=5)
    return {
        f"{kind}_each": owner.jobs(kind, many, size.num_each, request={"model": owner.model})
        for kind in ("job", "chat", "completion", "response")
    }


def _others(others: Others, size: Size) -> tuple[dict[str, UUID], dict[str, list[UUID]]]:
    """What isn't a job: that which is read, and that which is used up."""
    hook = others.endpoints(1)[0]
    deliveries = others.deliveries(hook, 200)
    ids = {
        "file": others.file_of_parts(16, 4 << 20),
        "file_of_lines": others.file_of_parts(size.num_parts, 100),
        "file_input": others.files(1, purpose="batch")[0],
        "hook": hook,
        "delivery": deliveries[0],
    }
    each = {
        "file_each": others.files(size.num_files)[: size.num_each],
        "batch_cancelled": others.batches(size.num_each, status="validating"),
        "batch_deleted": others.batches(size.num_each, status="validating"),
        "hook_each": others.endpoints(size.num_each),
    }
    for endpoint in each["hook_each"]:
        others.deliveries(endpoint, 1_000)
    ids["batch"] = others.batches(100)[-1]
    return ids, each


def _id(name: str, id_: UUID) -> str:
    return _PREFIXES.get(name.partition("_")[0], wire.JOB_PREFIX) + id_.hex
