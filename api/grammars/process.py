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
from typing import Any, NoReturn

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
        """End the process; a later question starts another."""
        process, self._process = self._process, None
        self._loaded.clear()
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.communicate()  # reads to the end: the pipes stay open otherwise

    async def refusal(self, grammar: str, tokenizer: TokenizerFile) -> str | None:
        """Why a model can't follow this grammar; None if it can.

        Raises TokenizerRefused, and ServiceUnavailable where it could not be found out.
        """
        if self._process is not None and self._process.returncode is not None:
            await self.close()
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
        except _Killed:
            reason = TOO_COSTLY
        if reason is not None:
            raise TokenizerRefused(reason)
        self._loaded.add(tokenizer.sha256)

    async def _ask(self, question: dict[str, Any]) -> str | None:
        """The answer's reason. Raises _Killed, ServiceUnavailable."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                answer = await self._exchange(orjson.dumps(question))
        except BaseException as error:
            # Also when cancelled: the answer must not be taken for the next question's.
            await self.close()
            if isinstance(error, TimeoutError):
                raise ServiceUnavailable from error
            raise
        if not answer:
            await self._bury()
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

    async def _bury(self) -> NoReturn:
        assert self._process is not None
        returncode = await self._process.wait()
        await self.close()
        if -returncode in _KILLED_BY_GRAMMAR:
            raise _Killed
        log.error("grammar_sandbox_died", returncode=returncode)
        raise ServiceUnavailable


class _Killed(Exception):
    """The process died of the question."""


async def _start() -> Process:
    # -I: neither the working directory nor variables decide what is imported.
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        str(_SCRIPT),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
    )
