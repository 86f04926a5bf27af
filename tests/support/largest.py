"""The largest jobs a tenant can own, written straight into Postgres: what the largest legal answers
are made of. What else there is of it writes `largest_others.py`. No pytest in here: benchmarks use
it too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
from psycopg.types.json import Jsonb

from store.pools import DictConnection
from tasks.events import Event, EventType, compress_event_log, make_event
from tasks.ids import uuid7
from tasks.queues import lane_for

_JOB = """
INSERT INTO jobs (id, tenant_id, api_key_id, model, model_requested, pool, service_tier, lane,
    status, attempt, max_fails, deadline_at, hint_count, input_tokens, max_output_tokens,
    cached_tokens, output_tokens, price_version, input_price, cached_price, output_price, currency,
    cost_micros, request_hash, started_at, finished_at, num_choices, dialect, tool_format,
    is_background)
VALUES (%(id)s, %(tenant_id)s, 'key', %(model)s, %(model)s, 'default', 'default', %(lane)s,
    'completed', 1, 3, now() + interval '1 hour', 1, 100, %(num_tokens)s, 0, %(output_tokens)s, 1,
    1, 1, 1, 'USD', 7, '', now(), now(), %(num_choices)s, %(dialect)s, %(tool_format)s, true)
"""
_PAYLOAD = """
INSERT INTO job_payloads (job_id, tenant_id, request, prompt_token_ids, sampling)
VALUES (%(id)s, %(tenant_id)s, %(request)s, '', '{}')
"""
_RESULT = """
INSERT INTO job_results (job_id, tenant_id, output, last_seq, event_log)
VALUES (%(id)s, %(tenant_id)s, %(output)s::jsonb, %(last_seq)s, %(event_log)s)
"""

WORD = "word"  # of each token


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a finished job says: `num_choices` texts of `num_tokens` tokens each."""

    num_tokens: int
    num_choices: int
    top_logprobs: int | None = None
    text: str | None = None  # of each choice, instead of words

    @property
    def words(self) -> list[str]:
        """The texts of the tokens of one choice."""
        if self.text is None:
            return [WORD] * self.num_tokens
        length = -(-len(self.text) // self.num_tokens)
        return [self.text[at : at + length] for at in range(0, len(self.text), length)]

    def logprobs(self) -> list[Any] | None:
        """The same of every choice; realistic in length, and always the same."""
        if self.top_logprobs is None:
            return None
        rng = random.Random(self.num_tokens)
        return [
            [-rng.random(), [[n + 10, -rng.random()] for n in range(self.top_logprobs)]]
            for _ in self.words
        ]

    def output(self) -> bytes:
        """As `job_results` holds it, in JSON."""
        values = self.logprobs()
        ids = [n % 200 + 10 for n in range(len(self.words))]
        logprobs = {"logprobs": {"token_ids": ids, "values": values}} if values else {}
        return orjson.dumps(
            [
                {"index": n, "text": "".join(self.words), "finish_reason": "stop", **logprobs}
                for n in range(self.num_choices)
            ]
        )

    def events(self) -> Iterator[Event]:
        """As a worker makes them: a step gives a token to each choice."""
        yield make_event(1, EventType.STARTED, attempt=1, model="demo")
        values = self.logprobs()
        seq = 1
        for n, word in enumerate(self.words):
            more = {"logprobs": [values[n]]} if values else {}
            for index in range(self.num_choices):
                seq += 1
                fields = {"index": index, "text": word, "token_ids": [n % 200 + 10]}
                yield make_event(seq, EventType.TOKEN, **fields, **more)
        yield make_event(seq + 1, EventType.DONE)

    @property
    def last_seq(self) -> int:
        """The number of the final marker."""
        return len(self.words) * self.num_choices + 2


@dataclass(frozen=True, slots=True)
class Owner:
    """Writes a tenant's things as the database's owner. The model is one of the catalog."""

    connection: DictConnection
    tenant_id: UUID
    model: str

    def job(self, dialect: str, answer: Answer, **fields: Any) -> UUID:
        """A finished job, with its event log."""
        return self.jobs(dialect, answer, 1, **fields)[0]

    def jobs(self, dialect: str, answer: Answer, num: int, **fields: Any) -> list[UUID]:
        """Many that answer alike. `request` is the body that each was asked for with."""
        row = {
            "tenant_id": self.tenant_id,
            "model": self.model,
            "lane": lane_for(self.tenant_id),
            "dialect": dialect,
            "tool_format": fields.get("tool_format"),
            "num_tokens": answer.num_tokens,
            "num_choices": answer.num_choices,
            "output_tokens": answer.num_tokens * answer.num_choices,
            "request": Jsonb(fields.get("request", {"model": self.model})),
            "output": answer.output().decode(),
            "last_seq": answer.last_seq,
            "event_log": compress_event_log(answer.events()),
        }
        ids = [uuid7() for _ in range(num)]
        with self.connection.transaction():
            for job_id in ids:
                for statement in (_JOB, _PAYLOAD, _RESULT):
                    self.connection.execute(statement, row | {"id": job_id})
        return ids

    def response_chain(self, num_turns: int, input_: Any, answer: Answer) -> UUID:
        """The last of responses that go on from each other, each asked with the same input."""
        output = answer.output().decode()
        previous: str | None = None
        with self.connection.transaction():
            for _ in range(num_turns):
                job_id = uuid7()
                request = {"model": self.model, "input": input_, "previous_response_id": previous}
                row = {
                    "id": job_id,
                    "tenant_id": self.tenant_id,
                    "model": self.model,
                    "lane": lane_for(self.tenant_id),
                    "dialect": "response",
                    "tool_format": None,
                    "num_tokens": answer.num_tokens,
                    "num_choices": 1,
                    "output_tokens": answer.num_tokens,
                    "request": Jsonb(request),
                    "output": output,
                    "last_seq": 1,
                    "event_log": None,
                }
                for statement in (_JOB, _PAYLOAD, _RESULT):
                    self.connection.execute(statement, row)
                previous = f"resp_{job_id.hex}"
        return job_id
