"""Proves at every load that a way to compute steps gives the model's own logits. One for all ways.

Two sequences share steps, as requests do: prefills in chunks, then single tokens, on scattered
pages. Every window of the model is cut short meanwhile, in its own forward pass too, so that few
tokens cross it. What passes computes the model's formula; what doesn't is not served.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, cast

import torch
from transformers import PretrainedConfig, PreTrainedModel

from workers.inference.engine.errors import EngineError, is_device_lost
from workers.inference.engine.forward import Forward
from workers.inference.engine.kv_cache import num_pages_for
from workers.inference.engine.model import LoadedModel
from workers.inference.engine.request import Request
from workers.inference.engine.scheduler import Batch, Chunk

_CHUNKS = ((21, 21), (13,))  # tokens of each sequence that are prefilled, step by step
_NUM_DECODES = 6  # of each, afterwards
CUT = 17  # tokens: longer windows are cut to it. Not a whole number of pages
_CUT_NAMES = frozenset(
    {
        "sliding_window",
        "sliding_window_size",
        "attention_window_size",
        "window_size",
        "local_attention",
        "attention_chunk_size",
        "floor_scale",
        "index_topk",
    }
)
# Largest |found - right| / |right| of a row of logits. A wrong formula gives some tenths or more.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
_QUANTISED_TOLERANCE = 0.15  # activations are rounded by what shares their batch
_PADDED = -1e4  # a logit that the model itself rules out


class ProofError(EngineError):
    """What was computed is not what the model says."""

    def __init__(self, message: str) -> None:
        super().__init__("model_unsupported", message)


@dataclass(frozen=True, slots=True)
class PagedTokens:
    """As much of a request as a step reads."""

    token_ids: list[int]
    pages: list[int]

    def chunk(self, start: int, num_tokens: int) -> Chunk:
        return Chunk(cast(Request, self), start, num_tokens)


@dataclass(frozen=True, slots=True)
class _Step:
    batch: Batch
    expected: torch.Tensor  # [chunks, vocab]


class Proof:
    """What the model itself says of the probe. Prepared while its weights are all there."""

    def __init__(self, loaded: LoadedModel, *, on_step: Callable[[], None] = lambda: None) -> None:
        """`on_step` hears of every step that was computed: proof of life while a large one runs."""
        self._model = loaded.model
        self._on_step = on_step
        self._context_length = loaded.info.context_length
        is_quantised = loaded.info.dtype in ("int8", "nf4")
        self._is_exact = not is_quantised and loaded.model.dtype == torch.float32
        self._tolerance = _QUANTISED_TOLERANCE if is_quantised else _TOLERANCE[loaded.model.dtype]
        self._tokens = _probes(loaded.model, self._context_length)
        with cut_windows(self._model, self._context_length):
            self._logits = [self._own_logits(tokens) for tokens in self._tokens]

    @property
    def num_pages(self) -> int:
        """Of a cache that holds the probe."""
        return sum(num_pages_for(len(tokens)) for tokens in self._tokens)

    def use(self, loaded: LoadedModel) -> None:
        """The same model, loaded once more: what it says stays true."""
        self._model = loaded.model

    def is_cut(self, window: int) -> bool:
        """Is this window short while the proof is made?"""
        return _is_cut(window, self._context_length)

    def check(self, forward: Forward) -> None:
        """Raises ProofError, or EngineError for what attention itself refuses.

        What a device that is done for raises goes through.
        """
        with cut_windows(self._model, self._context_length):
            errors = [error for step in self._steps(forward) for error in self._run(forward, step)]
        # Rounding may send a token to another expert: where it is coarse, one row in three may be.
        judged = sorted(errors)[-1 if self._is_exact else len(errors) * 2 // 3]
        if any(map(math.isnan, errors)):  # among them no order means anything
            judged = math.nan
        if not judged <= self._tolerance:
            raise ProofError(f"its logits differ from the model's own by {judged:.3g}")

    def _own_logits(self, tokens: Sequence[int]) -> torch.Tensor:
        with _told_as("its own forward pass fails"):
            logits = own_logits(self._model, tokens)
        self._on_step()
        return logits

    def _run(self, forward: Forward, step: _Step) -> list[float]:
        with _told_as("it can't be computed through pages"):
            found = forward.run(step.batch).float()
        self._on_step()
        pairs = zip(found, step.expected.to(found.device), strict=True)
        return [relative_error(row, right) for row, right in pairs]

    def _steps(self, forward: Forward) -> list[_Step]:
        """Of both sequences, or of the first alone where the cache has no room for two."""
        num = 2 if forward.num_pages >= self.num_pages else 1
        return list(_steps(self._tokens[:num], self._logits[:num]))


@contextmanager
def cut_windows(model: PreTrainedModel, context_length: int) -> Iterator[bool]:
    """The model with short windows; some of its modules read the config when they compute.

    Yields whether there are any.
    """
    before = []
    for owner in (*_configs(model), *model.modules()):
        values = vars(owner)
        for name in _CUT_NAMES & values.keys():
            if type(values[name]) is int and _is_cut(values[name], context_length):
                before.append((owner, name, values[name]))
                setattr(owner, name, CUT)
    try:
        yield bool(before)
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _is_cut(window: int, context_length: int) -> bool:
    """A window that no context reaches stays as it is: nothing depends on it."""
    return CUT < window < context_length


def continuation_probe(loaded: LoadedModel) -> tuple[list[int], int]:
    """A prompt, and how many greedy tokens behind it prove an engine that samples."""
    context_length = loaded.info.context_length
    length = min(sum(_CHUNKS[0]), context_length - 1)
    return probe_tokens(loaded.model, length), min(_NUM_DECODES, context_length - length)


def check_continuation(loaded: LoadedModel, prompt: list[int], found: list[int]) -> None:
    """Raises ProofError unless the model itself says these tokens, each behind those before it.

    One that is as good as its best is rounding; where that is coarse, one in three may be worse.
    """
    logits = own_logits(loaded.model, [*prompt, *found[:-1]])[len(prompt) - 1 :]
    gaps = [_behind_best(row, token_id) for row, token_id in zip(logits, found, strict=True)]
    is_exact = loaded.info.dtype == "fp32"
    judged = sorted(gaps)[-1 if is_exact else len(gaps) * 2 // 3]
    if not judged <= (0.01 if is_exact else 0.5):
        raise ProofError("what it says after a probe is not the model's own")


def _behind_best(row: torch.Tensor, token_id: int) -> float:
    """How far a token's logit is below the best one, in deviations of those that count."""
    return float((row.max() - row[token_id]) / (row[row > _PADDED].std() + 1e-9))


@torch.inference_mode()
def own_logits(model: PreTrainedModel, token_ids: Sequence[int]) -> torch.Tensor:
    """Logits [tokens, vocab], float32, of transformers' plainest attention."""
    ours = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        tokens = torch.tensor([list(token_ids)], device=model.device)
        output = model(input_ids=tokens, use_cache=False)
    finally:
        model.set_attn_implementation(ours)
    logits: torch.Tensor = output.logits[0].float()
    if logits.isnan().any():
        raise ProofError("its own logits are no numbers")
    return logits


def relative_error(found: torch.Tensor, right: torch.Tensor) -> float:
    """|found - right| / |right| of one row; NaN where either holds none.

    Around their means: what all logits have in common says nothing, and would hide errors.
    """
    is_ruled_out = right <= _PADDED
    if not torch.equal(found <= _PADDED, is_ruled_out):
        return float("nan")
    found, right = found[~is_ruled_out], right[~is_ruled_out]
    found, right = found - found.mean(), right - right.mean()
    return float((found - right).norm() / right.norm())


def probe_tokens(model: PreTrainedModel, num_tokens: int, *, seed: int = 0) -> list[int]:
    """The same random token ids every time."""
    vocab_size = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = torch.randint(0, vocab_size, (num_tokens,), generator=generator).tolist()
    return tokens


def _probes(model: PreTrainedModel, context_length: int) -> list[list[int]]:
    lengths = [min(sum(chunks) + _NUM_DECODES, context_length) for chunks in _CHUNKS]
    return [probe_tokens(model, length, seed=seed) for seed, length in enumerate(lengths)]


def _steps(tokens: list[list[int]], logits: list[torch.Tensor]) -> Iterator[_Step]:
    numbers = range(sum(num_pages_for(len(ids)) for ids in tokens))
    pages = _dealt(numbers, [num_pages_for(len(ids)) for ids in tokens])
    spans = [_spans(len(ids), chunks) for ids, chunks in zip(tokens, _CHUNKS, strict=False)]
    for together in zip_longest(*spans):
        parts = [(i, *span) for i, span in enumerate(together) if span is not None]
        parts.sort(key=lambda part: part[2] > 1)  # decodes first
        batch = Batch(
            tuple(
                PagedTokens(tokens[i][: start + num], pages[i]).chunk(start, num)
                for i, start, num in parts
            ),
            num_decodes=sum(num == 1 for _, _, num in parts),
        )
        yield _Step(batch, torch.stack([logits[i][start + num - 1] for i, start, num in parts]))


def _dealt(numbers: range, counts: list[int]) -> list[list[int]]:
    """Page numbers for each sequence, in no order, none next to its neighbour's."""
    scattered = [*numbers[1::2], *numbers[::2]]
    return [[scattered.pop() for _ in range(count)] for count in counts]


def _spans(num_tokens: int, chunks: Sequence[int]) -> list[tuple[int, int]]:
    """(start, tokens) of each step over a sequence that may be shorter than planned."""
    spans, start = [], 0
    for size in (*chunks, *[1] * _NUM_DECODES):
        if num := min(size, num_tokens - start):
            spans.append((start, num))
            start += num
    return spans


@contextmanager
def _told_as(what: str) -> Iterator[None]:
    """Modules fail in many ways when they compute what they weren't made for."""
    try:
        yield
    except (EngineError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        if is_device_lost(error):
            raise
        raise ProofError(f"{what}: {type(error).__name__}: {error}") from error


def _configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    """Of the model and of its parts, each once."""
    found: dict[int, Any] = {id(model.config): model.config}
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            found.setdefault(id(config), config)
    text = model.config.get_text_config()
    found.setdefault(id(text), text)
    return list(found.values())
