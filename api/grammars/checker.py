"""Finds out before admission whether a grammar can be compiled, without blocking the event loop."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any
from uuid import UUID

import structlog

from api import metrics
from api.grammars.formats import Grammar
from api.grammars.process import SandboxProcess, TokenizerFile, TokenizerRefused
from api.grammars.queue import FairQueue
from tasks.errors import InvalidGrammar, UnsupportedParameter

log = structlog.get_logger(__name__)

MAX_VERDICTS = 10_000  # about 200 bytes each
# Grammars nobody has seen yet; each takes the sandbox for up to a second.
MAX_WAITING = 512
MAX_WAITING_PER_TENANT = 64
MAX_WAIT_S = 30.0

# How a client waits that may go first, for instance.
Wait = Callable[[Coroutine[Any, Any, None]], Awaitable[None]]


async def just_wait(work: Coroutine[Any, Any, None]) -> None:
    """As long as it takes."""
    await work


class GrammarChecker:
    """One sandbox and what it said so far. One an API process; used on the event loop alone."""

    def __init__(self) -> None:
        self._sandbox = SandboxProcess()
        self._queue = FairQueue(
            max_waiting=MAX_WAITING, max_tenant=MAX_WAITING_PER_TENANT, max_wait_s=MAX_WAIT_S
        )
        self._running: asyncio.Task[None] | None = None  # what the sandbox is asked
        # Hash of tokenizer and grammar -> why it can't be used; least recently used first.
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()
        self._unusable: set[str] = set()  # hashes of tokenizers

    async def close(self) -> None:
        """End the sandbox."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        await self._sandbox.close()

    async def check(
        self,
        grammar: Grammar,
        *,
        tokenizer: TokenizerFile,
        tenant_id: UUID,
        wait: Wait = just_wait,
    ) -> None:
        """Return if the engine can follow the grammar. New ones wait for the sandbox, in turns of
        the tenants, by way of `wait`; who is cancelled meanwhile gives up its place.

        Raises InvalidGrammar with the reason, UnsupportedParameter for a model without structured
        output, RateLimitExceeded or ServiceUnavailable when too many new grammars wait.
        """
        key = _key(grammar, tokenizer)
        if key not in self._verdicts:
            await wait(self._find_out(key, grammar, tokenizer, tenant_id))
        self._verdicts.move_to_end(key)
        reason = self._verdicts[key]
        metrics.grammars_checked.labels("refused" if reason else "accepted").inc()
        if reason is not None:
            message = f"The {grammar.noun} can't be used: {reason}."
            raise InvalidGrammar(message, param=grammar.param)

    async def _find_out(
        self, key: bytes, grammar: Grammar, tokenizer: TokenizerFile, tenant_id: UUID
    ) -> None:
        await self._queue.enter(tenant_id)
        # What has begun goes on without who asked: to end it is to start another sandbox, and
        # that would be the next one's time.
        self._running = asyncio.create_task(self._have_turn(key, grammar, tokenizer))
        self._running.add_done_callback(_look_at)
        await asyncio.shield(self._running)

    async def _have_turn(self, key: bytes, grammar: Grammar, tokenizer: TokenizerFile) -> None:
        try:
            await self._learn(key, grammar, tokenizer)
        finally:
            self._queue.leave()

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


def _look_at(task: asyncio.Task[None]) -> None:
    """Nobody may be there any more to whom it matters how it ended."""
    if not task.cancelled():
        task.exception()


def _key(grammar: Grammar, tokenizer: TokenizerFile) -> bytes:
    return hashlib.sha256(f"{tokenizer.sha256}\n{grammar.text}".encode()).digest()
