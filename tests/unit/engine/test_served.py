"""What one model's step survives: no memory, guilty requests, a lost device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.unit.engine.requests import MODEL, running_request
from workers.inference.engine.counters import Counters
from workers.inference.engine.errors import EngineError
from workers.inference.engine.executor import SampledToken
from workers.inference.engine.protocol import (
    EngineRequest,
    FinishReason,
    SamplingParams,
    TokenLogprobs,
    TokenOutput,
)
from workers.inference.engine.request import Grammar, Request
from workers.inference.engine.scheduler import Batch
from workers.inference.engine.served import ServedModel
from workers.inference.engine.stub import StubDecoder

NUM_REQUESTS = 8
Fault = Callable[[Sequence[Request], int], Exception | None]


class FaultyExecutor:
    """Samples token 5 for everybody; `run_fault` and `sample_fault` get requests and tokens."""

    def __init__(self) -> None:
        self.info = MODEL
        self.eos_token_ids = frozenset({0})
        self.max_num_seqs = NUM_REQUESTS
        self.page_size = 16
        self.num_pages = 100
        self.run_fault: Fault = lambda _requests, _num_tokens: None
        self.sample_fault: Fault = self.run_fault
        self.errors: dict[str, EngineError] = {}  # in place of a request's token
        self.runs: list[int] = []  # tokens of each

    def decoder(self, _sampling: SamplingParams) -> StubDecoder:
        return StubDecoder()

    def seed(self, request: EngineRequest) -> int | None:
        return request.sampling.seed

    def grammar(self, text: str) -> Grammar:
        raise NotImplementedError

    def run(self, batch: Batch) -> Batch:
        self.runs.append(batch.num_tokens)
        assert all(chunk.num_tokens == 1 for chunk in batch.chunks[: batch.num_decodes])
        if fault := self.run_fault(batch.requests, batch.num_tokens):
            raise fault
        return batch

    def score(self, scores: Batch, batch: Batch) -> list[list[TokenLogprobs]]:
        raise NotImplementedError

    def sample(
        self, scores: Batch, requests: Sequence[Request]
    ) -> list[SampledToken | EngineError]:
        assert requests == scores.sampled
        if fault := self.sample_fault(requests, scores.num_tokens):
            raise fault
        return [self.errors.get(request.request_id, SampledToken(5)) for request in requests]


class Bench:
    """A served model over a faulty executor, with NUM_REQUESTS requests of 3 prompt tokens."""

    def __init__(self, *, budget: int = 100, num_prompt: int = 3) -> None:
        self.executor = FaultyExecutor()
        self.counters = Counters()
        self.served = ServedModel(
            self.executor,
            max_num_batched_tokens=budget,
            enable_prefix_cache=True,
            counters=self.counters,
        )
        self.requests = [
            running_request(prompt_token_ids=[i + 1] * num_prompt, request_id=str(i))
            for i in range(NUM_REQUESTS)
        ]
        for request in self.requests:
            self.served.add(request)

    def step(self) -> list[TokenOutput]:
        outputs: list[TokenOutput] = []
        self.served.step(outputs)
        return outputs


def failed(outputs: list[TokenOutput]) -> set[str]:
    return {o.request_id for o in outputs if o.finish_reason is FinishReason.ERROR}


def blame(*request_ids: str) -> Fault:
    """A fault of every batch with one of these requests."""

    def fault(requests: Sequence[Request], _num_tokens: int) -> Exception | None:
        is_guilty = any(request.request_id in request_ids for request in requests)
        return ValueError("boom") if is_guilty else None

    return fault


def out_of_memory(most: int) -> Fault:
    """A device that holds `most` tokens."""
    error = EngineError("out_of_memory", "full", retryable=True)
    return lambda _requests, num_tokens: error if num_tokens > most else None


@pytest.mark.parametrize("place", ["run_fault", "sample_fault"])
@pytest.mark.parametrize("guilty", [("0",), ("5",), ("7",), ("0", "1"), ("2", "6")])
def test_only_guilty_requests_fail_and_the_others_get_their_token(
    place: str, guilty: tuple[str, ...]
) -> None:
    bench = Bench()
    setattr(bench.executor, place, blame(*guilty))

    outputs = bench.step()

    assert failed(outputs) == set(guilty)
    assert len(outputs) == NUM_REQUESTS
    innocent = [request for request in bench.requests if request.request_id not in guilty]
    assert all(request.num_generated == 1 for request in innocent)
    assert bench.served.num_running == len(innocent)


@pytest.mark.parametrize("guilty", [str(i) for i in range(NUM_REQUESTS)])
def test_guilty_request_is_found_in_logarithmically_many_runs(guilty: str) -> None:
    bench = Bench()
    bench.executor.run_fault = blame(guilty)

    bench.step()

    assert len(bench.executor.runs) == 1 + 2 * math.log2(NUM_REQUESTS)


def test_error_of_a_guilty_request_names_it_and_is_retryable() -> None:
    bench = Bench()
    bench.executor.run_fault = blame("3")

    (output,) = [o for o in bench.step() if o.finish_reason]

    assert output.error is not None
    assert (output.error.code, output.error.retryable) == ("engine_error", True)
    assert output.error.message == "ValueError: boom"


def test_decodes_and_prefills_are_bisected_together() -> None:
    bench = Bench()
    bench.step()
    late = running_request(prompt_token_ids=[9] * 5, request_id="late")
    bench.served.remove(bench.requests[0])
    bench.served.add(late)
    bench.executor.run_fault = blame("late", "2")

    outputs = bench.step()

    assert failed(outputs) == {"late", "2"}
    assert bench.requests[1].num_generated == 2


def test_lost_device_fails_all_retryably_without_trying_each() -> None:
    bench = Bench()
    bench.executor.run_fault = lambda _requests, _num_tokens: RuntimeError("device lost")

    outputs = bench.step()

    assert len(failed(outputs)) == NUM_REQUESTS
    assert all(output.error is not None and output.error.retryable for output in outputs)
    assert len(bench.executor.runs) < NUM_REQUESTS + 2
    assert not bench.served.has_work


def test_step_out_of_memory_is_taken_again_smaller_and_nobody_fails() -> None:
    bench = Bench(budget=64, num_prompt=8)
    bench.executor.run_fault = out_of_memory(20)

    outputs = [bench.step() for _ in range(9)]

    assert bench.executor.runs[:3] == [64, 32, 16]
    assert not any(failed(step) for step in outputs)
    assert all(request.num_generated for request in bench.requests)
    assert bench.counters.num_out_of_memory == 2


def test_budget_recovers_after_clean_steps() -> None:
    bench = Bench(budget=64, num_prompt=8)
    bench.executor.run_fault = out_of_memory(32)
    bench.step()
    for request in bench.requests:
        bench.served.remove(request)

    for i in range(100):
        prompt = [i % 50, *range(1, 80)]
        bench.served.add(running_request(prompt_token_ids=prompt, max_tokens=1, cache_salt=str(i)))
    for _ in range(66):
        bench.step()

    assert bench.executor.runs == [64] + [32] * 64 + [64, 32]


def test_device_that_holds_single_tokens_only_still_serves_everybody() -> None:
    bench = Bench(budget=64, num_prompt=8)
    bench.executor.run_fault = out_of_memory(1)

    outputs = []
    while bench.served.has_work:
        outputs += bench.step()

    assert not failed(outputs)
    assert {request.finish_reason for request in bench.requests} == {FinishReason.LENGTH}


def test_request_whose_single_token_runs_out_of_memory_fails_alone() -> None:
    bench = Bench(num_prompt=1)
    error = EngineError("out_of_memory", "full", retryable=True)
    is_guilty = blame("4")
    bench.executor.run_fault = lambda requests, n: error if is_guilty(requests, n) else None

    outputs = bench.step()

    (output,) = [o for o in outputs if o.finish_reason]
    assert (output.request_id, output.error) == ("4", error)
    assert len(outputs) == NUM_REQUESTS


def test_error_in_place_of_a_token_fails_its_request_alone() -> None:
    bench = Bench()
    error = EngineError("engine_error", "no token may follow")

    bench.executor.errors["1"] = error

    assert failed(bench.step()) == {"1"}


def test_restarted_model_computes_its_requests_again_from_their_tokens() -> None:
    bench = Bench()
    bench.step()

    bench.served.restart(bench.requests)
    bench.step()

    assert bench.executor.runs == [3 * NUM_REQUESTS, 4 * NUM_REQUESTS]
    assert all(request.token_ids[-2:] == [5, 5] for request in bench.requests)


def test_choices_are_prepared_with_the_digests_they_would_compute_themselves() -> None:
    served = Bench().served
    fields: dict[str, Any] = {"n": 2, "generated_token_ids": [[5] * 9, [6] * 25], "max_tokens": 50}
    choices = [running_request(24, index=index, **fields) for index in (0, 1)]
    alone = running_request(24, index=1, **fields)

    served.prepare(choices)
    served.prepare([alone])

    assert [len(choice.page_digests) for choice in choices] == [2, 3]
    assert choices[0].page_digests[0] == choices[1].page_digests[0]
    assert choices[1].page_digests == alone.page_digests


def test_a_step_may_take_some_times_as_long_as_those_before_it() -> None:
    bench = Bench()
    before = bench.served.patience_s
    bench.executor.run_fault = lambda _requests, _num_tokens: time.sleep(0.05)

    bench.step()

    slow = bench.served.patience_s
    assert 0.2 <= slow < before
    bench.executor.run_fault = lambda _requests, _num_tokens: None
    bench.step()
    assert 0.15 < bench.served.patience_s < slow
