"""The stub can be foretold, slowed, hung, and observed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.engine.collector import Collector
from tests.unit.engine.requests import engine_request
from workers.inference.engine.config import StubConfig
from workers.inference.engine.errors import EngineError
from workers.inference.engine.protocol import EngineRequest, FinishReason, Phase
from workers.inference.engine.scheduler import Batch, Scheduler
from workers.inference.engine.stub import (
    StubEngine,
    expected_logprobs,
    expected_text,
    expected_tokens,
    prompt_seed,
)

Start = Callable[..., StubEngine]


def stub_request(request_id: str, **fields: Any) -> EngineRequest:
    return engine_request(request_id=request_id, model="stub", **fields)


@pytest.fixture
def sink() -> Collector:
    return Collector()


@pytest.fixture
def start(sink: Collector) -> Iterator[Start]:
    engines: list[StubEngine] = []

    def start_stub(**config: Any) -> StubEngine:
        engines.append(StubEngine(StubConfig(**config)))
        engines[-1].start(sink)
        return engines[-1]

    yield start_stub
    for engine in engines:
        engine.shutdown()


@contextmanager
def held(engine: StubEngine) -> Iterator[None]:
    """Let what is submitted inside enter the engine in one or two steps."""
    engine.hang()
    try:
        yield
    finally:
        engine.release()


def break_once(monkeypatch: pytest.MonkeyPatch, method: str, *, at_call: int) -> None:
    """A bug in the scheduler that shows once."""
    original = getattr(Scheduler, method)
    calls: list[object] = []

    def faulty(*args: object) -> object:
        calls.append(args)
        if len(calls) == at_call:
            raise RuntimeError("a bug")
        return original(*args)

    monkeypatch.setattr(Scheduler, method, faulty)


@pytest.fixture
def engine(sink: Collector, tmp_path: Path) -> Iterator[StubEngine]:
    stub = StubEngine(StubConfig(num_tokens=4, oracle_path=tmp_path / "oracle"))
    stub.start(sink)
    yield stub
    stub.shutdown()


def test_output_is_foretold_by_the_seed(engine: StubEngine, sink: Collector) -> None:
    engine.submit(stub_request("a", seed=9))

    sink.wait_finished("a")

    assert sink.tokens("a") == [*expected_tokens(9, 4), 0]
    assert sink.text("a") == expected_text(9, 4)
    assert sink.reason("a") is FinishReason.STOP


def test_prompt_is_the_seed_of_an_unseeded_request(engine: StubEngine, sink: Collector) -> None:
    engine.submit(stub_request("a", prompt_token_ids=[3, 4]))

    sink.wait_finished("a")

    assert sink.text("a") == expected_text(prompt_seed([3, 4]), 4)


def test_choices_and_logprobs_are_foretold_by_the_seed(engine: StubEngine, sink: Collector) -> None:
    engine.submit(stub_request("a", seed=9, n=3, logprobs=2))

    sink.wait_finished("a", n=3)

    for index in range(3):
        outputs = sink.outputs("a", index)
        token_ids = [*expected_tokens(9 + index, 4), 0]
        assert [output.token_ids for output in outputs] == [(token_id,) for token_id in token_ids]
        assert [o.logprobs for o in outputs] == [(expected_logprobs(t, 2),) for t in token_ids]
        assert sink.text("a", index) == expected_text(9 + index, 4)


def test_hang_stops_progress_until_released(engine: StubEngine, sink: Collector) -> None:
    engine.hang()
    engine.submit(stub_request("a"))
    hung = engine.progress()

    engine.release()
    sink.wait_finished("a")

    assert not hung.is_idle
    assert engine.progress().counter > hung.counter
    assert hung.counter == 1  # the load of the one model


def test_shutdown_ends_a_hang(engine: StubEngine, sink: Collector) -> None:
    engine.hang()
    engine.submit(stub_request("a"))

    engine.shutdown()

    assert len(sink.terminals("a")) == 1


def test_oracle_shows_each_execution(engine: StubEngine, sink: Collector, tmp_path: Path) -> None:
    engine.submit(stub_request("a"))
    sink.wait_finished("a")
    with pytest.raises(EngineError):
        engine.submit(stub_request("b", max_tokens=-1))
    engine.shutdown()

    lines = (tmp_path / "oracle").read_text().splitlines()
    assert sorted(lines) == ["finished a stop", "submitted a 0"]


def test_steps_take_the_configured_time(sink: Collector) -> None:
    stub = StubEngine(StubConfig(step_ms=2, token_ms=3))
    stub.start(sink)

    stub.submit(stub_request("a", max_tokens=4))
    sink.wait_finished("a")
    stub.shutdown()

    assert stub.stats().run_s >= 4 * 0.005


def test_poisoned_request_fails_alone_in_a_full_batch(start: Start, sink: Collector) -> None:
    engine = start(poison_token_id=13)

    with held(engine):
        for i in range(8):
            prompt = [5, 13] if i == 5 else [5, 6]
            engine.submit(stub_request(f"r{i}", prompt_token_ids=prompt, seed=i))
    sink.wait_finished(*(f"r{i}" for i in range(8)))

    (poisoned,) = sink.outputs("r5")
    assert poisoned.error is not None
    assert (poisoned.error.code, poisoned.error.retryable) == ("engine_error", True)
    for i in {*range(8)} - {5}:
        assert sink.text(f"r{i}") == expected_text(i, 10)


def test_step_that_runs_out_of_memory_is_taken_again_smaller(start: Start, sink: Collector) -> None:
    engine = start(oom_above_tokens=40, max_num_seqs=8)

    with held(engine):
        for i in range(8):
            engine.submit(stub_request(f"r{i}", prompt_token_ids=[5 + i] * 30, seed=i))
    sink.wait_finished(*(f"r{i}" for i in range(8)))

    assert [sink.text(f"r{i}") for i in range(8)] == [expected_text(i, 10) for i in range(8)]
    assert engine.stats().num_out_of_memory > 0


def test_requests_preempted_for_pages_say_the_same(start: Start, sink: Collector) -> None:
    engine = start(num_pages=8, max_num_seqs=6, context_length=128)

    with held(engine):
        for i in range(6):
            request = stub_request(f"r{i}", prompt_token_ids=[5 + i] * 20, seed=i, max_tokens=80)
            engine.submit(request)
    sink.wait_finished(*(f"r{i}" for i in range(6)))

    assert [sink.text(f"r{i}") for i in range(6)] == [expected_text(i, 80) for i in range(6)]
    assert engine.stats().num_preemptions > 0
    assert engine.stats().kv_cache_usage == 0.0


def test_request_that_no_kv_cache_could_hold_is_refused(start: Start) -> None:
    engine = start(num_pages=4)

    with pytest.raises(EngineError) as refused:
        engine.submit(stub_request("a", prompt_token_ids=[5] * 60))

    assert refused.value.code == "context_length_exceeded"
    assert engine.progress().is_idle


@pytest.mark.parametrize("method", ["schedule", "commit", "remove"])
def test_fault_of_the_loop_restarts_it_and_loses_no_token(
    start: Start, sink: Collector, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    engine = start()
    break_once(monkeypatch, method, at_call=3)

    with held(engine):
        for i in range(4):
            engine.submit(stub_request(f"r{i}", seed=i, max_tokens=4 + i))
    sink.wait_finished(*(f"r{i}" for i in range(4)))
    engine.submit(stub_request("late", seed=9))
    sink.wait_finished("late")

    for i in range(4):
        assert sink.text(f"r{i}") == expected_text(i, 4 + i)
        assert len(sink.terminals(f"r{i}")) == 1
    assert sink.text("late") == expected_text(9, 10)
    assert engine.stats().num_restarts == 1
    assert engine.stats().kv_cache_usage == 0.0


def test_loop_that_always_fails_stops_the_engine_and_ends_all_requests(
    start: Start, sink: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start()

    def fail(_self: Scheduler) -> Batch:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Scheduler, "schedule", fail)
    with held(engine):
        engine.submit(stub_request("a", n=2))
        engine.submit(stub_request("b"))
    sink.wait_finished("a", n=2)
    sink.wait_finished("b")
    engine.shutdown()

    errors = [output.error for output in sink.terminals("a") + sink.terminals("b")]
    assert len(errors) == 3
    assert all(error is not None and error.retryable for error in errors)
    assert engine.progress().phase is Phase.STOPPED
    assert engine.stats().num_restarts == 3


def test_stub_engine_needs_no_torch() -> None:
    code = (
        "import sys; from workers.inference.engine.factory import build_engine;"
        "from workers.inference.engine.config import EngineConfig;"
        "build_engine(EngineConfig(kind='stub'));"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )

    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
