"""Requests and models for tests that need no engine around them."""

from __future__ import annotations

from typing import Any

from workers.inference.engine.protocol import EngineRequest, ModelInfo, SamplingParams
from workers.inference.engine.request import Grammar, Request
from workers.inference.engine.stub import StubDecoder

MODEL = ModelInfo(name="m", context_length=100, vocab_size=50, dtype="fp32", num_bytes=0)


def engine_request(num_prompt: int = 3, **fields: Any) -> EngineRequest:
    """Fields of SamplingParams and of EngineRequest may be mixed."""
    names = EngineRequest.__dataclass_fields__
    own = {name: value for name, value in fields.items() if name in names}
    sampling = {name: value for name, value in fields.items() if name not in names}
    defaults: dict[str, Any] = {
        "request_id": "r",
        "model": "m",
        "prompt_token_ids": [1] * num_prompt,
        "sampling": SamplingParams(**{"max_tokens": 10} | sampling),
    }
    return EngineRequest(**defaults | own)


def running_request(
    num_prompt: int = 3, *, index: int = 0, grammar: Grammar | None = None, **fields: Any
) -> Request:
    """Choice `index` of `engine_request(num_prompt, **fields)`; token 0 ends it."""
    return Request(
        engine_request(num_prompt, **fields),
        decoder=StubDecoder(),
        eos_token_ids=frozenset({0}),
        context_length=MODEL.context_length,
        index=index,
        seed=fields.get("seed"),
        grammar=grammar,
    )
