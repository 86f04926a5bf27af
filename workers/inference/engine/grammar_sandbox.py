"""The process that tries a grammar out before a worker compiles it. It may die of it.

llguidance bounds much of what a grammar costs, but a schema of some kB with a long chain of
references overflows its stack, and some patterns keep it busy for minutes or longer.

`grammar_guard.py` starts this file by its path, isolated and without an environment, with the
limits as its one argument. One JSON object a line, in and out; it ends with its input.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

MAX_REASON_CHARS = 400
_SILENT = 0


def main() -> None:
    """Answer `{"tokenizer", "json", "size", "ends"}` by loading, `{"tokenizer", "grammar"}` by
    compiling. Each answer is `{"reason"}`: null, or why it can't be done.
    """
    limits = json.loads(sys.argv[1])
    _limit_process(limits)
    tokenizers: dict[str, LLTokenizer] = {}
    for line in sys.stdin.buffer:
        question = json.loads(line)
        if "json" in question:
            reason = _limited(limits["load_cpu_s"], partial(_load, tokenizers, question))
        else:
            work = partial(_compile, tokenizers, question, limits["parser"])
            reason = _limited(limits["cpu_s"], work)
        sys.stdout.write(json.dumps({"reason": reason}) + "\n")
        sys.stdout.flush()


def _limit_process(limits: dict[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory_bytes"], limits["memory_bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(limits["stack_bytes"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker, which closes our input


def _limited(cpu_s: float, work: Callable[[], str | None]) -> str | None:
    """Run on a thread with the small stack; SIGPROF's default action ends the process in time."""
    reasons: list[str | None] = []
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    thread = threading.Thread(target=lambda: reasons.append(work()))
    thread.start()
    thread.join()
    signal.setitimer(signal.ITIMER_PROF, 0)
    return reasons[0]


def _load(tokenizers: dict[str, LLTokenizer], question: dict[str, Any]) -> str | None:
    try:
        tokenizers[question["tokenizer"]] = LLTokenizer(
            question["json"], n_vocab=question["size"], eos_token=question["ends"]
        )
    except BaseException as error:  # a panic in Rust is no Exception
        return str(error)[:MAX_REASON_CHARS]
    return None


def _compile(
    tokenizers: dict[str, LLTokenizer], question: dict[str, Any], limits: dict[str, Any]
) -> str | None:
    try:
        matcher = LLMatcher(
            tokenizers[question["tokenizer"]],
            question["grammar"],
            log_level=_SILENT,
            limits=LLParserLimits(**limits),
        )
        # Some faults show only where tokens are first looked at.
        if not matcher.is_error():
            matcher.compute_bitmask()
        return str(matcher.get_error())[:MAX_REASON_CHARS] if matcher.is_error() else None
    except BaseException:  # a panic in Rust is no Exception
        return "it could not be read"


if __name__ == "__main__":
    main()
