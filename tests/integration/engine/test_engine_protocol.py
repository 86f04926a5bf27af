"""What every engine promises, on the stub and on the real engine over a tiny random model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.integration.engine.collector import TIMEOUT_S, Collector
from tests.support.tiny_models import CONTEXT_LENGTH, save_tiny_llama
from workers.inference.engine.config import EngineConfig, ModelSpec, StubConfig
from workers.inference.engine.errors import EngineError
from workers.inference.engine.factory import build_engine
from workers.inference.engine.protocol import (
    Engine,
    EngineRequest,
    FinishReason,
    Phase,
    SamplingParams,
    TokenOutput,
)

SLOTS = 4
ENDLESS = 10_000  # max_tokens that only the context can reach
LONG_PROMPT = tuple(5 + i % 200 for i in range(70))
NUM_CACHEABLE = 64  # of LONG_PROMPT: its full pages


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(params=["stub", "millrace"])
def engine(request: pytest.FixtureRequest, model_path: Path) -> Iterator[Engine]:
    stub = StubConfig(
        model_names=("m",), max_num_seqs=SLOTS, context_length=CONTEXT_LENGTH, vocab_size=300
    )
    built = build_engine(
        EngineConfig(
            kind=request.param,
            models=(ModelSpec(name="m", path=str(model_path), dtype="fp32"),),
            max_num_seqs=SLOTS,
            num_threads=1,
            stub=stub,
        )
    )
    yield built
    built.shutdown()


@pytest.fixture
def sink(engine: Engine) -> Collector:
    collector = Collector()
    engine.start(collector)
    return collector


def generate(
    request_id: str,
    *,
    prompt: Sequence[int] = (5, 6, 7, 8),
    generated: Sequence[int] = (),
    **sampling: Any,
) -> EngineRequest:
    settings = {"max_tokens": 24, "temperature": 0.0, "seed": 7, "ignore_eos": True} | sampling
    return EngineRequest(
        request_id=request_id,
        model="m",
        prompt_token_ids=prompt,
        generated_token_ids=(generated,) if generated else (),
        sampling=SamplingParams(**settings),
    )


def on_first_output(sink: Collector, act: Callable[[], None]) -> None:
    """Run `act` once, on the device thread, right after the next step that produced something."""

    def hook(_outputs: Sequence[TokenOutput]) -> None:
        sink.hook = None
        act()

    sink.hook = hook


INVALID: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "unknown model": ({"model": "other"}, {}, "model_not_found"),
    "empty prompt": ({"prompt_token_ids": []}, {}, "invalid_prompt"),
    "token out of range": ({"prompt_token_ids": [10**6]}, {}, "invalid_prompt"),
    "long prompt": ({"prompt_token_ids": [5] * CONTEXT_LENGTH}, {}, "context_length_exceeded"),
    "less than no tokens wanted": ({}, {"max_tokens": -1}, "invalid_request"),
    "temperature is not a number": ({}, {"temperature": float("nan")}, "invalid_request"),
    "no choices wanted": ({}, {"n": 0}, "invalid_request"),
    "tokens of a choice too many": ({"generated_token_ids": ((1,), (1,))}, {}, "invalid_request"),
}


class TestEngineProtocol:
    def test_max_tokens_ends_with_length(self, engine: Engine, sink: Collector) -> None:
        engine.submit(generate("a", max_tokens=5))

        sink.wait_finished("a")

        assert len(sink.tokens("a")) == 5
        assert sink.reason("a") is FinishReason.LENGTH

    def test_full_context_ends_with_length(self, engine: Engine, sink: Collector) -> None:
        engine.submit(generate("a", max_tokens=ENDLESS))

        sink.wait_finished("a")

        assert len(sink.tokens("a")) == CONTEXT_LENGTH - 4
        assert sink.reason("a") is FinishReason.LENGTH

    def test_every_request_ends_exactly_once_and_last(
        self, engine: Engine, sink: Collector
    ) -> None:
        ids = [f"r{i}" for i in range(30)]

        for i, request_id in enumerate(ids):
            engine.submit(generate(request_id, max_tokens=1 + i))
            if i % 3 == 0:
                engine.abort(ids[i // 2])
        sink.wait_finished(*ids)
        engine.shutdown()

        for request_id in ids:
            assert len(sink.terminals(request_id)) == 1
            assert sink.outputs(request_id)[-1].finish_reason is not None

    def test_running_requests_share_each_step(self, engine: Engine, sink: Collector) -> None:
        for request_id in ("a", "b"):
            engine.submit(generate(request_id))

        sink.wait_finished("a", "b")

        shared = [step for step in sink.steps if len(step) == 2]
        assert len(shared) > 12

    def test_request_joins_a_running_batch(self, engine: Engine, sink: Collector) -> None:
        on_first_output(sink, lambda: engine.submit(generate("late", max_tokens=2)))

        engine.submit(generate("early"))
        sink.wait_finished("early", "late")

        order = [o.request_id for step in sink.steps for o in step if o.finish_reason]
        assert order == ["late", "early"]

    def test_more_requests_than_slots_all_finish(self, engine: Engine, sink: Collector) -> None:
        ids = [f"r{i}" for i in range(3 * SLOTS)]

        for request_id in ids:
            engine.submit(generate(request_id))
        sink.wait_finished(*ids)

        assert {sink.text(request_id) for request_id in ids} == {sink.text("r0")}
        assert max(len(step) for step in sink.steps) <= SLOTS

    def test_abort_ends_within_two_steps(self, engine: Engine, sink: Collector) -> None:
        on_first_output(sink, lambda: engine.abort("a"))

        engine.submit(generate("a", max_tokens=ENDLESS))
        sink.wait_finished("a")

        assert sink.reason("a") is FinishReason.ABORT
        assert len(sink.tokens("a")) <= 3

    def test_abort_of_waiting_request_ends_it(self, engine: Engine, sink: Collector) -> None:
        def submit_and_abort() -> None:
            engine.submit(generate("waiting"))
            engine.abort("waiting")

        on_first_output(sink, submit_and_abort)

        for i in range(SLOTS):
            engine.submit(generate(f"r{i}", max_tokens=ENDLESS))
        sink.wait_finished("waiting")

        assert sink.reason("waiting") is FinishReason.ABORT
        assert sink.tokens("waiting") == []

    def test_abort_of_unknown_request_is_ignored(self, engine: Engine, sink: Collector) -> None:
        engine.abort("a")
        engine.submit(generate("a"))

        sink.wait_finished("a")

        assert sink.reason("a") is FinishReason.LENGTH

    def test_deadline_passed_before_start_produces_nothing(
        self, engine: Engine, sink: Collector
    ) -> None:
        engine.submit(replace(generate("a"), deadline=time.monotonic() - 1))

        sink.wait_finished("a")

        assert sink.reason("a") is FinishReason.DEADLINE
        assert sink.tokens("a") == []

    def test_deadline_ends_a_running_request(self, engine: Engine, sink: Collector) -> None:
        deadline = time.monotonic() + 0.2

        def outlast_the_deadline() -> None:
            threading.Event().wait(deadline - time.monotonic() + 0.01)

        on_first_output(sink, outlast_the_deadline)

        engine.submit(replace(generate("a", max_tokens=ENDLESS), deadline=deadline))
        sink.wait_finished("a")

        assert sink.reason("a") is FinishReason.DEADLINE

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_continuation_equals_uninterrupted_run_at_every_split(
        self, engine: Engine, sink: Collector, temperature: float
    ) -> None:
        engine.submit(generate("whole", temperature=temperature))
        sink.wait_finished("whole")
        tokens, outputs = sink.tokens("whole"), sink.outputs("whole")

        for split in range(len(tokens) + 1):
            engine.submit(
                generate(f"split{split}", generated=tokens[:split], temperature=temperature)
            )
        sink.wait_finished(*(f"split{split}" for split in range(len(tokens) + 1)))

        for split in range(len(tokens) + 1):
            text_before = "".join(output.text for output in outputs[:split])
            assert sink.tokens(f"split{split}") == tokens[split:]
            assert text_before + sink.text(f"split{split}") == sink.text("whole")
            assert sink.reason(f"split{split}") is FinishReason.LENGTH

    def test_continuation_goes_on_inside_a_half_seen_stop_string(
        self, engine: Engine, sink: Collector
    ) -> None:
        engine.submit(generate("free"))
        sink.wait_finished("free")
        stop = middle(sink.text("free"))
        engine.submit(generate("whole", stop=(stop,)))
        sink.wait_finished("whole")
        tokens, outputs = sink.tokens("whole"), sink.outputs("whole")

        for split in range(len(tokens) + 1):
            engine.submit(generate(f"split{split}", generated=tokens[:split], stop=(stop,)))
        sink.wait_finished(*(f"split{split}" for split in range(len(tokens) + 1)))

        for split in range(len(tokens) + 1):
            text_before = "".join(output.text for output in outputs[:split])
            assert text_before + sink.text(f"split{split}") == sink.text("whole")
            assert sink.reason(f"split{split}") is FinishReason.STOP

    def test_stop_string_cuts_the_text_and_is_not_leaked(
        self, engine: Engine, sink: Collector
    ) -> None:
        engine.submit(generate("free"))
        sink.wait_finished("free")
        stop = middle(sink.text("free"))

        engine.submit(generate("stopped", stop=(stop, "never said")))
        sink.wait_finished("stopped")

        text = sink.text("free")
        assert sink.text("stopped") == text[: text.index(stop)]
        assert sink.reason("stopped") is FinishReason.STOP

    def test_stop_token_is_counted_but_not_said(self, engine: Engine, sink: Collector) -> None:
        engine.submit(generate("free"))
        sink.wait_finished("free")
        tokens = sink.tokens("free")
        end = next(t for t in tokens if tokens.index(t) >= 5)

        engine.submit(generate("stopped", stop_token_ids=(end,)))
        sink.wait_finished("stopped")

        assert sink.tokens("stopped") == tokens[: tokens.index(end) + 1]
        assert sink.text("free").startswith(sink.text("stopped"))
        assert sink.outputs("stopped")[-1].finish_reason is FinishReason.STOP

    @pytest.mark.parametrize("case", INVALID)
    def test_invalid_request_is_refused_and_leaves_nothing(
        self, engine: Engine, sink: Collector, case: str
    ) -> None:
        fields, sampling, code = INVALID[case]

        with pytest.raises(EngineError) as refused:
            engine.submit(replace(generate("a", **sampling), **fields))
        stats = engine.stats()
        engine.submit(generate("a"))
        sink.wait_finished("a")

        assert (refused.value.code, refused.value.retryable) == (code, False)
        assert (stats.num_running, stats.num_waiting) == (0, 0)

    def test_grammar_that_cannot_be_compiled_is_refused(
        self, engine: Engine, sink: Collector
    ) -> None:
        with pytest.raises(EngineError) as refused:
            engine.submit(replace(generate("a"), grammar="{"))

        assert refused.value.code in ("invalid_grammar", "unsupported")
        assert not refused.value.retryable
        assert engine.progress().is_idle

    def test_duplicate_request_id_is_refused_while_running(
        self, engine: Engine, sink: Collector
    ) -> None:
        codes: list[str] = []

        def submit_again() -> None:
            try:
                engine.submit(generate("a"))
            except EngineError as error:
                codes.append(error.code)

        on_first_output(sink, submit_again)
        engine.submit(generate("a"))
        sink.wait_finished("a")
        engine.submit(generate("a"))
        sink.wait_for(lambda: len(sink.terminals("a")) == 2)

        assert codes == ["duplicate_request"]

    def test_shutdown_aborts_what_runs_and_what_waits(
        self, engine: Engine, sink: Collector
    ) -> None:
        ids = [f"r{i}" for i in range(2 * SLOTS)]
        has_stepped, may_go_on = threading.Event(), threading.Event()

        def pause() -> None:
            has_stepped.set()
            may_go_on.wait(TIMEOUT_S)

        on_first_output(sink, pause)

        for request_id in ids:
            engine.submit(generate(request_id, max_tokens=ENDLESS))
        assert has_stepped.wait(TIMEOUT_S)
        stopper = threading.Thread(target=engine.shutdown)
        stopper.start()
        may_go_on.set()
        stopper.join(TIMEOUT_S)
        engine.shutdown()

        assert {sink.reason(request_id) for request_id in ids} == {FinishReason.ABORT}
        assert engine.progress().phase is Phase.STOPPED
        with pytest.raises(EngineError) as refused:
            engine.submit(generate("late"))
        assert (refused.value.code, refused.value.retryable) == ("engine_unavailable", True)

    def test_idle_engine_says_so_and_counts_its_steps(
        self, engine: Engine, sink: Collector
    ) -> None:
        before = engine.progress()

        engine.submit(generate("a"))
        sink.wait_finished("a")

        assert before.is_idle
        assert before.phase is Phase.SERVING
        assert engine.progress().counter >= before.counter + 24
        assert engine.stats().generated_tokens == 24
        assert engine.stats().prompt_tokens == 4

    def test_failing_sink_does_not_stop_the_engine(self, engine: Engine, sink: Collector) -> None:
        def fail() -> None:
            raise RuntimeError("the sink is broken")

        on_first_output(sink, fail)

        engine.submit(generate("a"))
        sink.wait_finished("a")

        assert len(sink.tokens("a")) == 24

    def test_each_choice_is_what_a_request_with_its_seed_would_be(
        self, engine: Engine, sink: Collector
    ) -> None:
        for i in range(3):
            engine.submit(generate(f"alone{i}", seed=7 + i, temperature=1.0))
        engine.submit(generate("a", n=3, temperature=1.0))
        sink.wait_finished("a", n=3)
        sink.wait_finished("alone0", "alone1", "alone2")

        for i in range(3):
            assert sink.tokens("a", i) == sink.tokens(f"alone{i}")
            assert sink.text("a", i) == sink.text(f"alone{i}")
            assert len(sink.terminals("a", i)) == 1
        assert len({sink.text("a", i) for i in range(3)}) == 3

    def test_more_choices_than_slots_all_finish(self, engine: Engine, sink: Collector) -> None:
        num_choices = 3 * SLOTS

        engine.submit(generate("a", n=num_choices, max_tokens=4))
        sink.wait_finished("a", n=num_choices)

        assert all(len(sink.tokens("a", i)) == 4 for i in range(num_choices))

    def test_choices_compute_their_prompt_once(self, engine: Engine, sink: Collector) -> None:
        engine.submit(generate("a", prompt=LONG_PROMPT, n=SLOTS, max_tokens=4))
        sink.wait_finished("a", n=SLOTS)

        found = [sink.terminals("a", i)[0].cached_tokens for i in range(SLOTS)]
        assert found == [0] + [NUM_CACHEABLE] * (SLOTS - 1)

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_choices_continue_their_own_tokens(
        self, engine: Engine, sink: Collector, temperature: float
    ) -> None:
        engine.submit(generate("whole", n=3, temperature=temperature))
        sink.wait_finished("whole", n=3)
        cuts = [0, 5, 24]

        past = tuple(tuple(sink.tokens("whole", i)[:cut]) for i, cut in enumerate(cuts))
        rest = generate("rest", n=3, temperature=temperature)
        engine.submit(replace(rest, generated_token_ids=past))
        sink.wait_finished("rest", n=3)

        for i, cut in enumerate(cuts):
            assert sink.tokens("rest", i) == sink.tokens("whole", i)[cut:]
            assert sink.text("whole", i).endswith(sink.text("rest", i))

    def test_abort_ends_all_choices_and_frees_the_id(self, engine: Engine, sink: Collector) -> None:
        on_first_output(sink, lambda: engine.abort("a"))

        engine.submit(generate("a", n=2 * SLOTS, max_tokens=ENDLESS))
        sink.wait_finished("a", n=2 * SLOTS)
        engine.submit(generate("a"))
        sink.wait_finished("a", n=2 * SLOTS + 1)

        reasons = [output.finish_reason for output in sink.terminals("a")]
        assert reasons == [FinishReason.ABORT] * 2 * SLOTS + [FinishReason.LENGTH]

    def test_deadline_ends_all_choices(self, engine: Engine, sink: Collector) -> None:
        engine.submit(replace(generate("a", n=3), deadline=time.monotonic() - 1))

        sink.wait_finished("a", n=3)

        assert {output.finish_reason for output in sink.outputs("a")} == {FinishReason.DEADLINE}

    def test_cached_prefix_is_counted_and_changes_nothing(
        self, engine: Engine, sink: Collector
    ) -> None:
        for request_id in ("cold", "warm"):
            engine.submit(generate(request_id, prompt=LONG_PROMPT))
            sink.wait_finished(request_id)

        assert sink.tokens("warm") == sink.tokens("cold")
        assert sink.terminals("cold")[0].cached_tokens == 0
        assert sink.terminals("warm")[0].cached_tokens == NUM_CACHEABLE
        stats = engine.stats()
        assert (stats.prefix_queries, stats.prefix_hits) == (2 * len(LONG_PROMPT), NUM_CACHEABLE)

    def test_requests_at_once_with_one_beginning_compute_it_once(
        self, engine: Engine, sink: Collector
    ) -> None:
        on_first_output(sink, lambda: submit_burst(engine))
        engine.submit(generate("first"))
        sink.wait_finished("burst0", "burst1", "burst2")
        at_once = [sink.tokens(f"burst{i}") for i in range(3)]

        for i in range(3):
            engine.submit(replace(generate(f"a{i}", prompt=[*LONG_PROMPT, i]), cache_salt=str(i)))
        sink.wait_finished("a0", "a1", "a2")

        found = sum(sink.terminals(f"burst{i}")[0].cached_tokens for i in range(3))
        assert found == 2 * NUM_CACHEABLE
        assert at_once == [sink.tokens(f"a{i}") for i in range(3)]

    def test_other_salt_finds_nothing(self, engine: Engine, sink: Collector) -> None:
        for salt in ("one", "other"):
            engine.submit(replace(generate(salt, prompt=LONG_PROMPT), cache_salt=salt))
            sink.wait_finished(salt)

        assert sink.terminals("other")[0].cached_tokens == 0
        assert engine.stats().prefix_hits == 0

    def test_models_and_slots_are_announced(self, engine: Engine, sink: Collector) -> None:
        assert engine.max_num_seqs == SLOTS
        assert engine.models["m"].context_length == CONTEXT_LENGTH


def submit_burst(engine: Engine) -> None:
    for i in range(3):
        engine.submit(generate(f"burst{i}", prompt=[*LONG_PROMPT, i]))


def middle(text: str) -> str:
    """A piece that does not occur earlier, across at least one token boundary."""
    start = len(text) // 2
    return next(text[start:end] for end in range(start + 4, len(text)) if is_new(text, start, end))


def is_new(text: str, start: int, end: int) -> bool:
    return text.index(text[start:end]) == start
