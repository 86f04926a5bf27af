"""What changes single logits before tokens are chosen: penalties, biases, suppressed tokens.

All rows of a batch are changed by a few operations over the entries concerned; a request that asks
for none of this costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from workers.inference.engine.errors import EngineError
from workers.inference.engine.protocol import SamplingParams
from workers.inference.engine.request import Request
from workers.inference.engine.transfer import to_device

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]

_FIRST_CAPACITY = 64  # tokens; doubled when full


def adjust(logits: torch.Tensor, requests: Sequence[Request]) -> dict[int, EngineError]:
    """Apply penalties, bias and min_tokens to logits [B, V], in place. Errors by row.

    Where a request has a grammar, min_tokens is the mask's affair.
    """
    edits, errors = _Edits(logits.shape[-1]), {}
    for row, request in enumerate(requests):
        if not _asks(request):
            continue
        try:
            edits.add(row, request)
        except Exception as error:  # whatever it is, the rest of the batch goes on
            errors[row] = EngineError("engine_error", f"sampling failed: {error}", retryable=True)
    edits.apply(logits.view(-1))
    return errors


class SamplerState:
    """What the sampler keeps of a request from step to step, as `request.sampler_state`."""

    def __init__(self, request: Request) -> None:
        params = request.sampling
        self.bias_ids = np.fromiter(params.logit_bias.keys(), np.int64)
        self.bias_values = np.fromiter(params.logit_bias.values(), np.float32)
        self.counts = TokenCounts(request) if _has_penalty(params) else None


class TokenCounts:
    """The distinct tokens of a request and how often each was generated.

    Follows the request, so that a step costs its new tokens only. Prompt tokens are among them,
    generated 0 times, where the repetition penalty asks for them.
    """

    def __init__(self, request: Request) -> None:
        self._num_seen = request.num_prompt if request.sampling.repetition_penalty == 1 else 0
        self._columns: dict[int, int] = {}
        self._ids = np.zeros(_FIRST_CAPACITY, dtype=np.int64)
        self._counts = np.zeros(_FIRST_CAPACITY, dtype=np.float32)

    def update(self, request: Request) -> tuple[Ids, Floats]:
        """Token ids and their counts [n], valid until the next update."""
        for i in range(self._num_seen, request.num_tokens):
            column = self._column_of(request.token_ids[i])
            if i >= request.num_prompt:
                self._counts[column] += 1
        self._num_seen = request.num_tokens
        size = len(self._columns)
        return self._ids[:size], self._counts[:size]

    def _column_of(self, token_id: int) -> int:
        column = self._columns.get(token_id)
        if column is not None:
            return column
        column = self._columns[token_id] = len(self._columns)
        if column == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[column] = token_id
        return column


@dataclass
class _Edits:
    """The entries of one step's logits, flattened, that change, and how."""

    vocab_size: int
    seen: list[Ids] = field(default_factory=list)
    factors: list[Floats] = field(default_factory=list)
    discounts: list[Floats] = field(default_factory=list)
    biased: list[Ids] = field(default_factory=list)
    biases: list[Floats] = field(default_factory=list)
    banned: list[Ids] = field(default_factory=list)

    def add(self, row: int, request: Request) -> None:
        """Raises IndexError for token ids outside the vocabulary."""
        state = request.sampler_state
        if state is None:
            state = request.sampler_state = SamplerState(request)
        if state.counts is not None:
            self._add_penalties(row, request.sampling, *state.counts.update(request))
        if len(state.bias_ids):
            self.biased.append(self._entries(row, state.bias_ids))
            self.biases.append(state.bias_values)
        if request.grammar is None and (suppressed := request.suppressed_token_ids):
            self.banned.append(self._entries(row, np.fromiter(suppressed, np.int64)))

    def apply(self, flat: torch.Tensor) -> None:
        """Change flat [B * V]: penalties, then biases, then bans."""
        if self.seen:
            self._penalise(flat)
        if self.biased:
            flat.index_add_(0, _joined(self.biased, flat), _joined(self.biases, flat))
        if self.banned:
            flat.index_fill_(0, _joined(self.banned, flat), float("-inf"))

    def _add_penalties(self, row: int, params: SamplingParams, ids: Ids, counts: Floats) -> None:
        """OpenAI's two penalties count generated tokens, the repetition penalty the prompt too."""
        if not len(ids):
            return
        self.seen.append(self._entries(row, ids))
        self.factors.append(np.full(len(ids), params.repetition_penalty, np.float32))
        presence = np.float32(params.presence_penalty) * (counts > 0)
        self.discounts.append(presence + np.float32(params.frequency_penalty) * counts)

    def _penalise(self, flat: torch.Tensor) -> None:
        entries, factors = _joined(self.seen, flat), _joined(self.factors, flat)
        seen = flat.index_select(0, entries)
        # A penalty must make a token less likely whatever the sign of its logit.
        penalised = torch.where(seen > 0, seen / factors, seen * factors)
        flat.index_copy_(0, entries, penalised - _joined(self.discounts, flat))

    def _entries(self, row: int, ids: Ids) -> Ids:
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise IndexError("a token id is outside the vocabulary")
        return ids + row * self.vocab_size


def _asks(request: Request) -> bool:
    params = request.sampling
    is_early = request.num_generated < params.min_tokens
    return is_early or bool(params.logit_bias) or _has_penalty(params)


def _has_penalty(params: SamplingParams) -> bool:
    return bool(
        params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty
    )


def _joined(parts: Iterable[Ids] | Iterable[Floats], like: torch.Tensor) -> torch.Tensor:
    return to_device(torch.from_numpy(np.concatenate(list(parts))), like.device)
