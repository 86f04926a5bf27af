"""The process that compiles clients' grammars, to see whether a worker could. It may die of one.

llguidance bounds much of what a grammar costs, but a schema of some kB with a long chain of
references overflows its stack, and some patterns keep it busy for minutes. So this runs apart from
the API and from the workers, with a limit on CPU time, stack and memory that ends it.

`process.py` starts this file by its path, isolated and without an environment: it imports nothing
of ours and knows no secret. One JSON object a line, in and out; it ends with its input.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
import threading
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

# Of CPU, for one grammar; then the process dies of SIGPROF. Ordinary ones take some ms.
MAX_CPU_S = 1.0
MAX_LOAD_CPU_S = 60.0  # for one tokenizer; 150,000 tokens take about a second
MAX_MEMORY_BYTES = 4 << 30  # of address space; more is an aborted process
# Half of what the smallest thread of a worker has, so that what passes here overflows none there.
STACK_BYTES = 1 << 20
MAX_REASON_CHARS = 200

# No wider than the engine's own in workers/inference/engine/grammar.py; a test compares them.
LIMITS = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,  # they would quote the grammar
}
_SILENT = 0
_FAILED = "it could not be read"

# What llguidance says, by how it begins, and what helps a client more.
_IN_OTHER_WORDS = {
    "NoExtension": "no text matches it",
    "ParserTooComplex": "it is too complex",
    "LexerTooComplex": "it is too complex",
    "fuel exhausted": "it is too complex",
    "Resource ": "it refers to another document",
    "oneOf constraints": "the alternatives of a oneOf must exclude each other; use anyOf",
}


def main() -> None:
    """Answer `{"tokenizer", "json", "eos"}` by loading, `{"tokenizer", "grammar"}` by compiling.

    Each answer is `{"reason"}`: null, or why it can't be done.
    """
    _limit_process()
    tokenizers: dict[str, LLTokenizer] = {}
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "json" in request:
            reason = _limited(MAX_LOAD_CPU_S, _load, tokenizers, request)
        else:
            reason = _limited(MAX_CPU_S, _compile, tokenizers, request)
        sys.stdout.write(json.dumps({"reason": reason}) + "\n")
        sys.stdout.flush()


def _limit_process() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK_BYTES)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the API, which closes our input


def _limited(cpu_s: float, work: Any, tokenizers: dict[str, LLTokenizer], request: Any) -> Any:
    """Run on a thread with the small stack; SIGPROF's default action ends the process in time."""
    reasons: list[str | None] = []
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    thread = threading.Thread(target=lambda: reasons.append(work(tokenizers, request)))
    thread.start()
    thread.join()
    signal.setitimer(signal.ITIMER_PROF, 0)
    return reasons[0]


def _load(tokenizers: dict[str, LLTokenizer], request: dict[str, Any]) -> str | None:
    try:
        document = json.loads(request["json"])
        added = {token["content"]: token["id"] for token in document.get("added_tokens") or []}
        eos = added.get(request["eos"])  # without it llguidance guesses
        tokenizers[request["tokenizer"]] = LLTokenizer(request["json"], eos_token=eos)
    except BaseException as error:  # a panic in Rust is no Exception
        return _in_one_line(str(error))
    return None


def _compile(tokenizers: dict[str, LLTokenizer], request: dict[str, Any]) -> str | None:
    try:
        matcher = LLMatcher(
            tokenizers[request["tokenizer"]],
            request["grammar"],
            log_level=_SILENT,
            limits=LLParserLimits(**LIMITS),
        )
        # Some faults show only where tokens are first looked at.
        if not matcher.is_error():
            matcher.compute_bitmask()
        return _in_one_line(matcher.get_error()) if matcher.is_error() else None
    except BaseException:  # a panic in Rust is no Exception
        return _FAILED


def _in_one_line(error: str) -> str:
    """llguidance's reason without the excerpt of the grammar that it shows below."""
    cause = re.search(r"^error: (.+)$", error, re.MULTILINE)
    line = cause[1] if cause else next(iter(error.strip().splitlines()), _FAILED)
    others = (words for start, words in _IN_OTHER_WORDS.items() if line.startswith(start))
    return next(others, line[:MAX_REASON_CHARS])


if __name__ == "__main__":
    main()
