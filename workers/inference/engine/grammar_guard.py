"""Finds out in a process of its own whether a grammar can be compiled, before the worker does it.

The API asks the same of every grammar that comes in through it. This guards the worker's other
requests against a job that came another way: compiling may take for ever or end the process.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.inference.engine.errors import EngineError

_SCRIPT = Path(__file__).with_name("grammar_sandbox.py")
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH")

# Each is wider than the API's own, so that what passed there passes here.
_MAX_CPU_S = 3.0  # for one grammar; ordinary ones take some ms
_MAX_LOAD_CPU_S = 60.0  # for one tokenizer; 150,000 tokens take about a second
_MAX_MEMORY_BYTES = 4 << 30  # of address space
_STACK_BYTES = 3 << 19  # less than the smallest thread of a worker has
_ANSWER_TIMEOUT_S = 60.0  # on a machine so busy that the limits of CPU time are far away
_MAX_VERDICTS = 10_000  # about 200 bytes each

# How a process ends that a grammar killed: out of CPU time, stack or memory.
_KILLED_BY_GRAMMAR = {signal.SIGPROF, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT}
_TOO_COSTLY = "it takes too much time or memory to compile"


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """What the process needs to make an LLTokenizer; `read_json` gives its tokenizer.json."""

    key: str  # equal for equal tokenizers
    read_json: Callable[[], str]
    size: int
    ends: tuple[int, ...]


class GrammarGuard:
    """One process, started at the first question and again after a grammar killed it.

    Thread-safe; one question at a time. Verdicts are remembered.
    """

    def __init__(self, parser_limits: Mapping[str, object]) -> None:
        """`parser_limits`: of LLParserLimits, the same that the worker compiles under."""
        self._limits = json.dumps(
            {
                "cpu_s": _MAX_CPU_S,
                "load_cpu_s": _MAX_LOAD_CPU_S,
                "memory_bytes": _MAX_MEMORY_BYTES,
                "stack_bytes": _STACK_BYTES,
                "parser": dict(parser_limits),
            }
        )
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._loaded: set[str] = set()
        # Hash of tokenizer and grammar -> why it can't be used; least recently used first.
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()

    def refusal(self, tokenizer: TokenizerSource, grammar: str) -> str | None:
        """Why this grammar can't be compiled; None if it can.

        Raises EngineError, retryable, where that could not be found out.
        """
        key = hashlib.sha256(f"{tokenizer.key}\n{grammar}".encode()).digest()
        with self._lock:
            if key not in self._verdicts:
                self._verdicts[key] = self._find_out(tokenizer, grammar)
                if len(self._verdicts) > _MAX_VERDICTS:
                    self._verdicts.popitem(last=False)
            self._verdicts.move_to_end(key)
            return self._verdicts[key]

    def close(self) -> None:
        """End the process; a later question starts another."""
        process, self._process = self._process, None
        self._loaded.clear()
        if process is None:
            return
        process.kill()
        process.communicate()  # reaps it and closes the pipes

    def _find_out(self, tokenizer: TokenizerSource, grammar: str) -> str | None:
        try:
            if self._process is not None and self._process.poll() is not None:
                self.close()
            if tokenizer.key not in self._loaded:
                self._load(tokenizer)
            return self._ask({"tokenizer": tokenizer.key, "grammar": grammar})
        except _KilledByGrammarError:
            return _TOO_COSTLY
        except OSError as error:
            self.close()
            raise _not_found_out(str(error)) from error

    def _load(self, tokenizer: TokenizerSource) -> None:
        question = {
            "tokenizer": tokenizer.key,
            "json": tokenizer.read_json(),
            "size": tokenizer.size,
            "ends": tokenizer.ends,
        }
        try:
            reason = self._ask(question)
        except _KilledByGrammarError:
            reason = "the process died of the tokenizer"
        if reason is not None:
            raise _not_found_out(reason)
        self._loaded.add(tokenizer.key)

    def _ask(self, question: dict[str, Any]) -> str | None:
        process = self._process = self._process or _start(self._limits)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            self._bury(process)
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        if not poll.poll(_ANSWER_TIMEOUT_S * 1000):
            self.close()
            raise _not_found_out("no answer in time")
        answer = process.stdout.readline()
        if not answer:
            self._bury(process)
        reason: str | None = json.loads(answer)["reason"]
        return reason

    def _bury(self, process: subprocess.Popen[bytes]) -> None:
        """Raises what the way it ended tells."""
        returncode = process.wait(_ANSWER_TIMEOUT_S)
        self.close()
        if -returncode in _KILLED_BY_GRAMMAR:
            raise _KilledByGrammarError
        raise _not_found_out(f"the process ended with {returncode}")


class _KilledByGrammarError(Exception):
    """The process died of the question."""


@functools.cache
def shared_guard(parser_limits: tuple[tuple[str, object], ...]) -> GrammarGuard:
    """The one of this process, for all its models."""
    guard = GrammarGuard(dict(parser_limits))
    atexit.register(guard.close)
    return guard


def _start(limits: str) -> subprocess.Popen[bytes]:
    # -I: neither the working directory nor variables decide what is imported.
    return subprocess.Popen(
        [sys.executable, "-I", str(_SCRIPT), limits],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
    )


def _not_found_out(reason: str) -> EngineError:
    message = f"the grammar could not be tried out: {reason}"
    return EngineError("engine_error", message, retryable=True)
