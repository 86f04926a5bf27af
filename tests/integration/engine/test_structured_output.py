"""Structured output through the whole engine, with random weights: what ends with STOP is valid."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.integration.engine.collector import Collector
from tests.support.json_keywords import KEYWORD_SCHEMAS
from tests.support.json_schemas import Schema, faults, random_schema
from tests.support.structured import json_grammar, lark_grammar
from tests.support.tiny_models import CONTEXT_LENGTH, byte_level_tokenizer, save_tiny_llama
from workers.inference.engine.config import EngineConfig, ModelSpec
from workers.inference.engine.errors import EngineError
from workers.inference.engine.millrace import MillraceEngine
from workers.inference.engine.protocol import (
    Engine,
    EngineRequest,
    FinishReason,
    SamplingParams,
    TokenOutput,
)

TOKENIZER = byte_level_tokenizer()
# Random weights hardly ever close a string or a list.
TOWARDS_AN_END = {TOKENIZER.token_to_id(character): 4.0 for character in '"}],:'}
PERSON = json_grammar(KEYWORD_SCHEMAS["person"])


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine_and_sink(model_path: Path) -> Iterator[tuple[MillraceEngine, Collector]]:
    spec = ModelSpec(name="m", path=str(model_path), dtype="fp32")
    engine = MillraceEngine(EngineConfig(models=(spec,), max_num_seqs=16, num_threads=1))
    sink = Collector()
    engine.start(sink)
    yield engine, sink
    engine.shutdown()


@pytest.fixture
def engine(engine_and_sink: tuple[MillraceEngine, Collector]) -> Engine:
    return engine_and_sink[0]


@pytest.fixture
def sink(engine_and_sink: tuple[MillraceEngine, Collector]) -> Collector:
    collector = engine_and_sink[1]
    collector.steps.clear()
    return collector


def request(request_id: str, grammar: str | None, **sampling: Any) -> EngineRequest:
    generated = sampling.pop("generated_token_ids", ())
    settings: dict[str, Any] = {"max_tokens": 200, "seed": 0, "logit_bias": TOWARDS_AN_END}
    return EngineRequest(
        request_id=request_id,
        model="m",
        prompt_token_ids=[5, 6, 7],
        sampling=SamplingParams(**settings | sampling),
        generated_token_ids=generated,
        grammar=grammar,
    )


def texts(engine: Engine, sink: Collector, grammars: Sequence[str], **sampling: Any) -> list[str]:
    """Of those that ended with STOP, run together; fails where one ended with an error."""
    ids = [f"{i}" for i in range(len(grammars))]
    for i, grammar in enumerate(grammars):
        engine.submit(request(ids[i], grammar, seed=i, **sampling))
    sink.wait_finished(*ids)
    reasons = [sink.reason(request_id) for request_id in ids]
    assert set(reasons) <= {FinishReason.STOP, FinishReason.LENGTH}
    return [
        sink.text(i) if reason is FinishReason.STOP else ""
        for i, reason in zip(ids, reasons, strict=True)
    ]


def check_schemas(engine: Engine, sink: Collector, schemas: Sequence[Schema]) -> int:
    """Every text must be of its schema; how many ended."""
    written = texts(engine, sink, [json_grammar(schema) for schema in schemas])
    pairs = [(schema, text) for schema, text in zip(schemas, written, strict=True) if text]
    for schema, text in pairs:
        assert faults(text, schema) == [], (schema, text)
    return len(pairs)


def test_300_random_schemas_give_no_invalid_text(engine: Engine, sink: Collector) -> None:
    num_finished = 0
    for start in range(5000, 5400, 50):
        sink.steps.clear()
        schemas = [random_schema(seed) for seed in range(start, start + 50)]
        num_finished += check_schemas(engine, sink, schemas)
    assert num_finished >= 300


def test_every_keyword_is_kept(engine: Engine, sink: Collector) -> None:
    schemas = list(KEYWORD_SCHEMAS.values())

    assert check_schemas(engine, sink, schemas) >= 0.8 * len(schemas)


@pytest.mark.parametrize(
    ("grammar", "regex"),
    [
        (lark_grammar("start: /[0-9]{4}-[0-9]{2}/"), "[0-9]{4}-[0-9]{2}"),
        (lark_grammar('start: "yes" | "no" | "ünï 😀"'), "yes|no|ünï 😀"),
        (lark_grammar('start: pair ("," pair)~1..2\npair: /[a-c]/ "=" /[0-9]/'), "[a-c0-9,=]+"),
        (json_grammar({"type": "object", "maxProperties": 2}), r"(?s)\{.*\}"),
    ],
    ids=["regex", "choice", "lark", "object"],
)
def test_text_is_of_its_grammar(engine: Engine, sink: Collector, grammar: str, regex: str) -> None:
    written = [text for text in texts(engine, sink, [grammar] * 16) if text]

    assert len(written) >= 8
    assert all(re.fullmatch(regex, text) for text in written)


def test_grammar_in_a_batch_changes_no_free_text(engine: Engine, sink: Collector) -> None:
    free = {"ignore_eos": True, "max_tokens": 40, "logit_bias": {}}
    engine.submit(request("alone", None, **free))
    sink.wait_finished("alone")

    engine.submit(request("together", None, **free))
    for i in range(10):
        engine.submit(request(f"{i}", PERSON, seed=i))
    sink.wait_finished("together", *(f"{i}" for i in range(10)))

    assert sink.tokens("together") == sink.tokens("alone")


def test_each_of_n_choices_follows_the_grammar(engine: Engine, sink: Collector) -> None:
    engine.submit(request("a", PERSON, n=4))
    sink.wait_for(lambda: len(sink.terminals("a")) == 4)

    written = [sink.text("a", index) for index in range(4)]
    stopped = [o.index for o in sink.terminals("a") if o.finish_reason is FinishReason.STOP]
    assert stopped
    assert len(set(written)) == 4
    assert all(faults(written[i], KEYWORD_SCHEMAS["person"]) == [] for i in stopped)


def test_output_cut_by_length_says_so(engine: Engine, sink: Collector) -> None:
    engine.submit(request("a", PERSON, max_tokens=8))
    sink.wait_finished("a")

    assert sink.reason("a") is FinishReason.LENGTH
    with pytest.raises(ValueError):
        json.loads(sink.text("a"))


def test_grammar_ends_a_request_that_ignores_eos(engine: Engine, sink: Collector) -> None:
    engine.submit(request("a", lark_grammar('start: "the fox"'), ignore_eos=True, min_tokens=50))
    sink.wait_finished("a")

    assert sink.reason("a") is FinishReason.STOP
    assert sink.text("a") == "the fox"


def test_continuation_after_a_cut_at_every_position_goes_on_alike(
    engine: Engine, sink: Collector
) -> None:
    engine.submit(request("whole", PERSON, temperature=1.0, max_tokens=120))
    sink.wait_finished("whole")
    tokens, text = sink.tokens("whole"), sink.text("whole")

    cuts = range(1, len(tokens))
    for cut in cuts:
        engine.submit(request(f"{cut}", PERSON, max_tokens=120, generated_token_ids=[tokens[:cut]]))
    sink.wait_finished(*(f"{cut}" for cut in cuts))

    for cut in cuts:
        assert tokens[:cut] + sink.tokens(f"{cut}") == tokens
        assert text.endswith(sink.text(f"{cut}"))


def test_logprobs_under_a_grammar_are_of_what_may_follow(engine: Engine, sink: Collector) -> None:
    grammar = lark_grammar("start: /[ab]{3}/")

    engine.submit(request("a", grammar, logprobs=5, logit_bias={}))
    sink.wait_finished("a")

    outputs: list[TokenOutput] = [o for o in sink.outputs("a") if o.token_ids]
    letters = {TOKENIZER.token_to_id(letter) for letter in "ab"}
    assert sink.text("a").strip("ab") == ""
    for output in outputs:
        (logprobs,) = output.logprobs
        assert {token for token, _ in logprobs.top} <= letters
        assert sum(2.718281828**value for _, value in logprobs.top) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (lark_grammar("start: /a(/"), "unclosed group"),
        (json_grammar({"type": "objec"}), "objec"),
        ("start: /a/", "not JSON"),
    ],
)
def test_bad_grammar_is_refused_at_submit(
    engine: Engine, sink: Collector, grammar: str, reason: str
) -> None:
    with pytest.raises(EngineError) as refused:
        engine.submit(request("a", grammar))

    assert refused.value.code == "invalid_grammar"
    assert reason in refused.value.message
    engine.submit(request("a", lark_grammar('start: "a"')))
    sink.wait_finished("a")
    assert len(sink.outputs("a")) == 1


def test_whole_context_may_be_written(engine: Engine, sink: Collector) -> None:
    engine.submit(request("a", lark_grammar("start: /[ab]+/"), max_tokens=CONTEXT_LENGTH))
    sink.wait_finished("a")

    assert sink.reason("a") in {FinishReason.STOP, FinishReason.LENGTH}
    assert set(sink.text("a")) <= {"a", "b"}
