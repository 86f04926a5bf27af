"""Talks to the sandbox: starts it at the first question, and again after a grammar killed it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import structlog

from tasks.errors import ServiceUnavailable

log = structlog.get_logger(__name__)

_SCRIPT = Path(__file__).with_name("sandbox.py")
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH")

# On a machine so busy that the sandbox's limits of CPU time are far away.
ANSWER_TIMEOUT_S = 30.0
# A catalog that changes leaves old tokenizers behind; beyond this many a new process begins.
MAX_TOKENIZERS = 8

# How a process ends that a grammar killed: out of CPU time, stack or memory.
_KILLED_BY_GRAMMAR = {signal.SIGPROF, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT}

TOO_COSTLY = "it takes too much time or memory to compile"


class TokenizerRefused(Exception):
    """llguidance can't read this model's tokenizer."""


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """A tokenizer.json by its hash; `read` gets its text and the end-of-sequence token's."""

    sha256: str
    read: Callable[[], Awaitable[tuple[str, str | None]]]


class SandboxProcess:
    """One question at a time; callers see to that. Used on the event loop alone."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._loaded: set[str] = set()

    async def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        self._loaded.clear()
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        # Reads the pipes to their end, without which their transports stay open.
        await process.communicate()

    async def refusal(self, grammar: str, tokenizer: TokenizerFile) -> str | None:
        """Why a model can't follow this grammar; None if it can.

        Raises TokenizerRefused, and ServiceUnavailable where it isn't known.
        """
        if tokenizer.sha256 not in self._loaded:
            await self._load(tokenizer)
        try:
            return await self._ask({"tokenizer": tokenizer.sha256, "grammar": grammar})
        except _Killed:
            return TOO_COSTLY

    async def _load(self, tokenizer: TokenizerFile) -> None:
        if len(self._loaded) >= MAX_TOKENIZERS:
            await self.close()
        text, eos = await tokenizer.read()
        try:
            reason = await self._ask({"tokenizer": tokenizer.sha256, "json": text, "eos": eos})
        except _Killed as death:
            reason = str(death)
        if reason is not None:
            raise TokenizerRefused(reason)
        self._loaded.add(tokenizer.sha256)

    async def _ask(self, question: dict[str, Any]) -> str | None:
        """Send a question, await the answer. Raises _Killed, ServiceUnavailable."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                answer = await self._exchange(orjson.dumps(question))
        except BaseException:  # also cancelled: the answer must not be taken for the next one's
            await self.close()
            raise
        if not answer:
            await self._report_death()
        reason: str | None = orjson.loads(answer)["reason"]
        return reason

    async def _exchange(self, line: bytes) -> bytes:
        """One line for another; empty if the process died over it."""
        process = self._process = self._process or await _start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line + b"\n")
            await process.stdin.drain()
        except ConnectionError:
            return b""
        return await process.stdout.readline()
