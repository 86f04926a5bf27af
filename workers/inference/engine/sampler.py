"""Logits to tokens, for a whole batch at once.

A draw depends on the request's logits, its seed and the position of the token, and on nothing else:
what shares the batch, or an attempt that died in between, does not change it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from workers.inference.engine.errors import EngineError
from workers.inference.engine.request import Request

_NEG_INF = float("-inf")
# A nucleus is looked for among this many best tokens before the whole vocabulary is sorted.
_NUCLEUS_CANDIDATES = 256
_MASK_64 = (1 << 64) - 1


def sample(logits: torch.Tensor, requests: Sequence[Request]) -> list[int | EngineError]:
    """One token per request, or the error of that request alone. logits [B, vocab], overwritten."""
    errors = [_adjust_or_error(logits[row], request) for row, request in enumerate(requests)]
    drawn = [row for row, request in enumerate(requests) if request.sampling.temperature > 0]
    tokens = logits.argmax(-1)
    if drawn:
        index = torch.tensor(drawn, device=logits.device)
        rows = logits if len(drawn) == len(requests) else logits[index]
        tokens[index] = _draw(rows, [requests[row] for row in drawn])
    return [error or token for error, token in zip(errors, _checked(logits, tokens), strict=True)]


def _checked(logits: torch.Tensor, tokens: torch.Tensor) -> list[int | EngineError]:
    """Tokens [B], except for rows that are not numbers: NaN counts as largest, so it is chosen."""
    spoilt = EngineError("engine_error", "the model's scores are not numbers", retryable=True)
    is_spoilt = logits.gather(1, tokens[:, None])[:, 0].isnan()
    pairs = zip(tokens.tolist(), is_spoilt.tolist(), strict=True)
    return [spoilt if bad else token for token, bad in pairs]


def _adjust_or_error(logits: torch.Tensor, request: Request) -> EngineError | None:
    try:
        _adjust(logits, request)
    except Exception as error:  # whatever it is, the rest of the batch goes on
        return EngineError("engine_error", f"sampling failed: {error}", retryable=True)
    return None


def filter_logits(logits: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    """Temperature, then top_k, top_p and min_p: tokens out of reach become -inf. [B, vocab]."""
    params = [request.sampling for request in requests]
    scaled = logits / _column(logits, [max(p.temperature, 1e-4) for p in params])
    if any(p.top_k for p in params):
        scaled = _below(scaled, _kth_largest(scaled, [p.top_k for p in params]))
    if any(p.top_p < 1 for p in params):
        scaled = _below(scaled, _nucleus_edge(scaled, [p.top_p for p in params]))
    if any(p.min_p for p in params):
        log_min_p = _column(logits, [p.min_p for p in params]).log()
        scaled = _below(scaled, scaled.amax(-1, keepdim=True) + log_min_p)
    return scaled


def _draw(logits: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    """Gumbel-max: the largest of log-probability plus noise is a draw from the distribution."""
    noise = _gumbel([_key(r.seed, r.num_generated) for r in requests], logits)
    return (filter_logits(logits, requests) + noise).argmax(-1)


def _adjust(logits: torch.Tensor, request: Request) -> None:
    """Penalties, bias and suppressed tokens of one request, in place. logits [vocab]."""
    params = request.sampling
    if params.repetition_penalty != 1:
        _penalise_repetition(logits, request)
    if params.presence_penalty or params.frequency_penalty:
        _penalise_presence(logits, request)
    if params.logit_bias:
        ids = _ids(list(params.logit_bias), logits)
        logits[ids] += torch.tensor(list(params.logit_bias.values()), device=logits.device)
    if suppressed := request.suppressed_token_ids:
        logits[_ids(list(suppressed), logits)] = _NEG_INF


def _penalise_repetition(logits: torch.Tensor, request: Request) -> None:
    """Divides positive and multiplies negative logits of every token seen, prompt included."""
    ids = _ids(list(set(request.token_ids)), logits)
    seen = logits[ids]
    penalty = request.sampling.repetition_penalty
    logits[ids] = torch.where(seen > 0, seen / penalty, seen * penalty)


def _penalise_presence(logits: torch.Tensor, request: Request) -> None:
    """OpenAI's penalties; they count generated tokens only."""
    generated = request.token_ids[request.num_prompt :]
    if not generated:
        return
    params, counts = request.sampling, Counter(generated)
    times = torch.tensor(list(counts.values()), dtype=logits.dtype, device=logits.device)
    logits[_ids(list(counts), logits)] -= params.presence_penalty + params.frequency_penalty * times


def _kth_largest(logits: torch.Tensor, top_k: Sequence[int]) -> torch.Tensor:
    """[B, 1]; -inf where there is no limit."""
    vocab_size = logits.shape[-1]
    limits = [min(k, vocab_size) for k in top_k]
    best = logits.topk(max(limits), dim=-1).values
    index = torch.tensor([max(k, 1) - 1 for k in limits], device=logits.device)
    edge = best.gather(1, index[:, None])
    return edge.masked_fill(_column(logits, [float(k) for k in limits]) == 0, _NEG_INF)


def _nucleus_edge(logits: torch.Tensor, top_p: Sequence[float]) -> torch.Tensor:
    """[B, 1]: the smallest logit of the smallest set of best tokens that holds top_p."""
    wanted = _column(logits, top_p)
    total = logits.logsumexp(-1, keepdim=True)
    size = min(_NUCLEUS_CANDIDATES, logits.shape[-1])
    edge, is_found = _edge_among(logits.topk(size, dim=-1).values, total, wanted)
    is_found |= wanted >= 1
    if not bool(is_found.all()):
        rows = (~is_found[:, 0]).nonzero()[:, 0]
        ordered = logits[rows].sort(dim=-1, descending=True).values
        edge[rows] = _edge_among(ordered, total[rows], wanted[rows])[0]
    return edge.masked_fill(wanted >= 1, _NEG_INF)


def _edge_among(
    best: torch.Tensor, total: torch.Tensor, wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The edge within the sorted `best` [B, n], and whether `best` reaches `wanted` at all."""
    mass = (best - total).exp().cumsum(-1)
    num_below = (mass < wanted).sum(-1, keepdim=True)
    edge = best.gather(1, num_below.clamp(max=best.shape[-1] - 1))
    return edge, num_below < best.shape[-1]


def _gumbel(keys: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """Noise [B, vocab]: a hash of (key, token id), so it needs no state and no order."""
    tokens = torch.arange(like.shape[-1], dtype=torch.int32, device=like.device)
    low = torch.tensor([_int32(key) for key in keys], dtype=torch.int32, device=like.device)
    high = torch.tensor([_int32(key >> 32) for key in keys], dtype=torch.int32, device=like.device)
    bits = _mix(_mix(tokens ^ low[:, None]) ^ high[:, None])
    uniform = (_shift(bits, 8).float() + 0.5) * 2.0**-24
    return uniform.log_().neg_().log_().neg_()


def _mix(x: torch.Tensor) -> torch.Tensor:
    """A bijection of 32 bits in which every output bit depends on every input bit; in place."""
    x = x ^ _shift(x, 16)
    x.mul_(0x7FEB352D).bitwise_xor_(_shift(x, 15))
    x.mul_(-0x7B935975).bitwise_xor_(_shift(x, 16))
    return x


def _shift(x: torch.Tensor, num_bits: int) -> torch.Tensor:
    """Logical shift to the right; torch's own carries the sign along."""
    return (x >> num_bits).bitwise_and_((1 << (32 - num_bits)) - 1)


def _key(seed: int, position: int) -> int:
    """64 bits from a seed and the index of a generated token."""
    key = (seed * 0x9E3779B97F4A7C15 + (position + 1) * 0xD1B54A32D192ED03) & _MASK_64
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return key ^ (key >> 31)


def _int32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def _below(logits: torch.Tensor, edge: torch.Tensor) -> torch.Tensor:
    return logits.masked_fill(logits < edge, _NEG_INF)


def _column(like: torch.Tensor, values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]


def _ids(values: list[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.long, device=like.device)
