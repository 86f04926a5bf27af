"""Finds out before admission whether a grammar can be compiled, without blocking the event loop."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import structlog

from api import metrics
from api.grammars.formats import Grammar
from api.grammars.process import SandboxProcess, TokenizerFile, TokenizerRefused
from tasks.errors import (
    InvalidGrammar,
    RateLimitExceeded,
    ServiceUnavailable,
    UnsupportedParameter,
)

log = structlog.get_logger(__name__)

MAX_VERDICTS = 10_000  # about 200 bytes each
MAX_WAITING = 64  # grammars nobody has seen yet; each takes the sandbox for up to a second
MAX_WAITING_PER_TENANT = 4


class GrammarChecker:
    """One sandbox and what it said so far. One an API process; used on the event loop alone."""

    def __init__(self) -> None:
        self._sandbox = SandboxProcess()
        self._is_free = asyncio.Lock()
        self._waiting: Counter[UUID] = Counter()
        # Hash of tokenizer and grammar -> why it can't be used; least recently used first.
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()
        self._unusable: set[str] = set()  # hashes of tokenizers

    async def close(self) -> None:
        """End the sandbox."""
        await self._sandbox.close()

    async def check(self, grammar: Grammar, *, tokenizer: TokenizerFile, tenant_id: UUID) -> None:
        """Return if the engine can follow the grammar.

        Raises InvalidGrammar with the reason, UnsupportedParameter for a model without structured
        output, RateLimitExceeded or ServiceUnavailable when too many new grammars wait.
        """
        key = _key(grammar, tokenizer)
        if key not in self._verdicts:
            with self._turn(tenant_id):
                async with self._is_free:
                    await self._learn(key, grammar, tokenizer)
        self._verdicts.move_to_end(key)
        reason = self._verdicts[key]
        metrics.grammars_checked.labels("refused" if reason else "accepted").inc()
        if reason is not None:
            message = f"The {grammar.noun} can't be used: {reason}."
            raise InvalidGrammar(message, param=grammar.param)

    @contextmanager
    def _turn(self, tenant_id: UUID) -> Iterator[None]:
        if self._waiting[tenant_id] >= MAX_WAITING_PER_TENANT:
            raise RateLimitExceeded("Too many new grammars of yours are being checked.")
        if self._waiting.total() >= MAX_WAITING:
            raise ServiceUnavailable("Too many new grammars are being checked at the moment.")
        self._waiting[tenant_id] += 1
        try:
            yield
        finally:
            self._waiting[tenant_id] -= 1
            if not self._waiting[tenant_id]:
                del self._waiting[tenant_id]

    async def _learn(self, key: bytes, grammar: Grammar, tokenizer: TokenizerFile) -> None:
        if key in self._verdicts:  # somebody asked the same while we waited
            return
        began = time.monotonic()
        self._verdicts[key] = await self._ask(grammar, tokenizer)
        metrics.grammar_seconds.observe(time.monotonic() - began)
        if len(self._verdicts) > MAX_VERDICTS:
            self._verdicts.popitem(last=False)

    async def _ask(self, grammar: Grammar, tokenizer: TokenizerFile) -> str | None:
        unsupported = UnsupportedParameter(
            "Structured output is not supported for this model.", param=grammar.param
        )
        if tokenizer.sha256 in self._unusable:
            raise unsupported
        try:
            return await self._sandbox.refusal(grammar.text, tokenizer)
        except TokenizerRefused as error:
            log.warning("tokenizer_without_grammars", sha256=tokenizer.sha256, reason=str(error))
            self._unusable.add(tokenizer.sha256)
            raise unsupported from None


def _key(grammar: Grammar, tokenizer: TokenizerFile) -> bytes:
    return hashlib.sha256(f"{tokenizer.sha256}\n{grammar.text}".encode()).digest()
