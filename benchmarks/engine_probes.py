"""What the benchmark measures of our engine alone: equality, prefix cache, grammars, aborts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from llguidance import LLMatcher

from benchmarks import random_model
from benchmarks.figures import median_of, range_of
from benchmarks.own_engine import OwnEngine
from benchmarks.peers.static_generate import StaticGenerate
from benchmarks.workload import Job, w_mix_batch
from workers.inference.engine.protocol import Engine, TokenOutput

NUM_COMPARED = 8  # requests of W-mix; each is generated alone by the reference, in fp32
_PREFIX_TOKENS, _SUFFIX_TOKENS = 1_024, 32
_JSON_BATCH, _JSON_TOKENS = 16, 96
# No token of it ends early: a list whose least length is out of reach, of all that JSON has.
_ENDLESS_SCHEMA = {
    "type": "array",
    "minItems": 1_000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 16},
            "count": {"type": "integer", "minimum": 0, "maximum": 99_999},
            "is_new": {"type": "boolean"},
        },
        "required": ["name", "count", "is_new"],
        "additionalProperties": False,
    },
}

Figures = dict[str, object]
_RUNS_TO_FILL = 9  # of 2,048 pages with W-mix, which takes about 270


def equal_tokens(folder: Path, _rounds: int) -> Figures:
    """Share of greedy tokens that equal `model.generate`, fp32, batched here, alone there."""
    model, jobs = random_model.build(folder / "m135"), w_mix_batch()
    engine = OwnEngine.load(model, dtype="fp32")
    ours = engine.generate(jobs)[:NUM_COMPARED]
    engine.close()
    reference = StaticGenerate(model, dtype=torch.float32)
    theirs = [reference.generate([job])[0] for job in jobs[:NUM_COMPARED]]
    pairs = [pair for rows in zip(ours, theirs, strict=True) for pair in zip(*rows, strict=True)]
    share = sum(a == b for a, b in pairs) / len(pairs)
    return {"equal_tokens": round(share, 6), "equal_tokens_requests": NUM_COMPARED}


def prefix_hit(folder: Path, rounds: int) -> Figures:
    """Time to first token behind a shared prefix: cached over cold."""
    context_length = 2 * _PREFIX_TOKENS
    model = random_model.build(folder / "m135-long", context_length=context_length)
    engine = OwnEngine.load(model)
    _hit_over_cold(engine, "warm-up")
    ratios = [_hit_over_cold(engine, str(number)) for number in range(rounds)]
    engine.close()
    return _median("prefix_hit_ttft_ratio", ratios)


def prefix_off(folder: Path, rounds: int) -> Figures:
    """W-mix without a single hit: throughput with the prefix cache over without it.

    Begins when the cache is full, as in a service: each new page then takes another prompt's place.
    """
    model, jobs = random_model.build(folder / "m135"), w_mix_batch()
    on, off = (OwnEngine.load(model, enable_prefix_cache=is_on) for is_on in (True, False))
    off.tokens_per_second(jobs)
    for _ in range(_RUNS_TO_FILL):
        on.tokens_per_second(jobs)
    ratios = [
        _ratio(lambda: on.tokens_per_second(jobs), lambda: off.tokens_per_second(jobs))
        for _ in range(rounds)
    ]
    on.close()
    off.close()
    return _median("prefix_off_ratio", ratios)


def json_vs_free(folder: Path, rounds: int) -> Figures:
    """Decoding at batch 16 under a JSON schema over free decoding of as many tokens."""
    model = random_model.build(folder / "m135-json", spells_bytes=True)
    grammar = LLMatcher.grammar_from_json_schema(_ENDLESS_SCHEMA)
    source = random.Random(1)
    jobs = [_random_job(source, 32, _JSON_TOKENS) for _ in range(_JSON_BATCH)]
    engine = OwnEngine.load(model, max_num_seqs=_JSON_BATCH)
    for warm_up in (grammar, None):
        engine.decode_rate(jobs, warm_up)
    ratios = [
        _ratio(lambda: engine.decode_rate(jobs, grammar), lambda: engine.decode_rate(jobs))
        for _ in range(rounds)
    ]
    engine.close()
    return _median("json_vs_free", ratios)


def cancel_steps(folder: Path, _rounds: int) -> Figures:
    """Engine steps from abort() to the first token of the request that got the place. The worst."""
    engine = _StepCounter.load(random_model.build(folder / "m135"), max_num_seqs=4)
    worst = max(_steps_to_reuse(engine, trial) for trial in range(20))
    engine.close()
    return {"cancel_steps": worst}


def _hit_over_cold(engine: OwnEngine, salt: str) -> float:
    source = random.Random(salt)
    prefix = _random_job(source, _PREFIX_TOKENS, 1).prompt
    times = []
    for is_hit in (False, True):
        suffix = _random_job(source, _SUFFIX_TOKENS, 1).prompt
        seconds, num_cached = engine.first_token_s(prefix + suffix, salt)
        if (num_cached > 0) is not is_hit:
            raise RuntimeError(f"{num_cached} cached tokens where a hit was {is_hit}")
        times.append(seconds)
    return times[1] / times[0]


class _StepCounter(OwnEngine):
    """Knows which step gave each request its first token."""

    def __init__(self, engine: Engine) -> None:
        self.first_steps: dict[str, int] = {}
        super().__init__(engine)

    def take(self, outputs: Sequence[TokenOutput]) -> None:
        num_steps = self.engine.stats().num_steps
        for output in outputs:
            if output.token_ids:
                self.first_steps.setdefault(output.request_id, num_steps)
        super().take(outputs)


def _steps_to_reuse(engine: _StepCounter, trial: int) -> int:
    """Fill every place, let one more wait, abort one request at some moment of some step."""
    source = random.Random(trial)
    jobs = [_random_job(source, 16, 400) for _ in range(engine.engine.max_num_seqs + 1)]
    ids = engine.submit(jobs)
    steps = engine.steps(len(jobs))
    for _ in range(source.randint(4, 8)):
        next(steps)
    time.sleep(source.uniform(0.0, 0.02))
    before = engine.engine.stats().num_steps
    engine.engine.abort(ids[0])
    while ids[-1] not in engine.first_steps:
        next(steps)
    for request_id in ids:
        engine.engine.abort(request_id)
    for _ in steps:
        pass
    return engine.first_steps[ids[-1]] - before


def _ratio(ours: Callable[[], float], other: Callable[[], float]) -> float:
    """One rate over another. Run ours, other, other, ours: a drift of the machine cancels out."""
    seconds = [1 / run() for run in (ours, other, other, ours)]
    return (seconds[1] + seconds[2]) / (seconds[0] + seconds[3])


def _random_job(source: random.Random, num_prompt: int, max_tokens: int) -> Job:
    return Job(tuple(source.randint(3, 4_000) for _ in range(num_prompt)), max_tokens)


def _median(name: str, ratios: Sequence[float]) -> Figures:
    return {name: median_of(ratios), f"{name}_range": range_of(ratios)}
