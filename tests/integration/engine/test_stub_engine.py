"""The stub can be foretold, slowed, hung, and observed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.engine.collector import Collector
from tests.unit.engine.requests import engine_request
from workers.inference.engine.config import EngineConfig, StubConfig
from workers.inference.engine.errors import EngineError
from workers.inference.engine.factory import build_engine
from workers.inference.engine.protocol import EngineRequest, FinishReason
from workers.inference.engine.stub import StubEngine, expected_text, expected_tokens, prompt_seed


def stub_request(request_id: str, **fields: Any) -> EngineRequest:
    return engine_request(request_id=request_id, model="stub", **fields)


@pytest.fixture
def sink() -> Collector:
    return Collector()


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
        engine.submit(stub_request("b", max_tokens=0))
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


def test_transformers_engine_says_that_it_is_not_there_yet() -> None:
    with pytest.raises(EngineError) as refused:
        build_engine(EngineConfig(kind="transformers-cb"))

    assert refused.value.code == "engine_unavailable"


def test_stub_engine_needs_no_torch() -> None:
    code = (
        "import sys; from workers.inference.engine.factory import build_engine;"
        "from workers.inference.engine.config import EngineConfig;"
        "build_engine(EngineConfig(kind='stub'));"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )

    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
