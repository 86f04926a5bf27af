"""One layer's attention on random keys and values, by the kernels and by plain arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from workers.inference.engine.cuda.launch import Formula, attend, tokens_per_tile, write_pages
from workers.inference.engine.cuda.plan import lay_out, put_on_device
from workers.inference.engine.kv_cache import PAGE_SIZE, KVCache, KVShape, num_pages_for
from workers.inference.engine.proof import PagedTokens
from workers.inference.engine.scheduler import Batch, Chunk


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start` to `start + num_tokens` of a sequence, computed in this step."""

    start: int
    num_tokens: int

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True)
class Trial:
    """One layer of a step. The first `num_decodes` spans are of one token each."""

    num_heads: int
    shape: KVShape
    formula: Formula
    spans: Sequence[Span]
    num_decodes: int
    num_splits: int = 1
    seed: int = 0

    @torch.inference_mode()
    def run(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Found and expected, [T, heads, D] each. What the cache holds besides is no number."""
        generator = torch.Generator(device).manual_seed(self.seed)

        def random(num: int, num_tokens: int) -> torch.Tensor:
            size = (num_tokens, num, self.shape.head_dim)  # as projections make them
            numbers = torch.randn(size, generator=generator, device=device)
            return numbers.to(self.shape.dtype).transpose(0, 1)

        query = random(self.num_heads, sum(span.num_tokens for span in self.spans))
        keys = [random(self.shape.num_kv_heads, span.end) for span in self.spans]
        values = [random(self.shape.num_kv_heads, span.end) for span in self.spans]
        found = self._by_kernels(query, keys, values)
        queries = torch.split(query, [span.num_tokens for span in self.spans], dim=1)
        rows = zip(queries, keys, values, strict=True)
        return found, torch.cat([plain_attention(*row, self.formula) for row in rows])

    def _by_kernels(
        self, query: torch.Tensor, keys: list[torch.Tensor], values: list[torch.Tensor]
    ) -> torch.Tensor:
        batch = self._batch()
        num_pages = sum(len(chunk.request.pages) for chunk in batch.chunks)
        cache = KVCache(self.shape, num_pages=num_pages, device=query.device)
        layer = cache.keys[0], cache.values[0]
        for pages, contents in zip(layer, (keys, values), strict=True):
            pages.fill_(torch.nan)
            for chunk, content in zip(batch.chunks, contents, strict=True):
                _write_past(pages, chunk, content)
        shape = self.shape
        tile = tokens_per_tile(self.num_heads, shape.num_kv_heads, shape.head_dim, shape.dtype)
        plan = put_on_device(lay_out(batch, tile), cache, self.num_splits).plan
        write_pages(layer, self._new(keys), self._new(values), plan.slots)
        return attend(query, layer, plan, self.formula)

    def _batch(self) -> Batch:
        """On pages that lie apart from each other."""
        numbers = range(sum(num_pages_for(span.end) for span in self.spans))
        free = [*numbers[::2], *numbers[1::2]]
        chunks = []
        for span in self.spans:
            pages = [free.pop() for _ in range(num_pages_for(span.end))]
            tokens = PagedTokens([0] * span.end, pages)
            chunks.append(tokens.chunk(span.start, span.num_tokens))
        return Batch(tuple(chunks), self.num_decodes)

    def _new(self, contents: Iterable[torch.Tensor]) -> torch.Tensor:
        """What this step computes, packed."""
        pairs = zip(contents, self.spans, strict=True)
        return torch.cat([content[:, span.start :] for content, span in pairs], dim=1)


def plain_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, formula: Formula
) -> torch.Tensor:
    """query [heads, n, D] of the last n of L tokens, keys and values [kv_heads, L, D].

    In float32; the result is [n, heads, D].
    """
    group = query.shape[0] // keys.shape[0]
    keys, values = (x.float().repeat_interleave(group, dim=0) for x in (keys, values))
    scores = query.float() @ keys.transpose(1, 2) * formula.scale
    if formula.softcap:
        scores = formula.softcap * torch.tanh(scores / formula.softcap)
    key_positions = torch.arange(keys.shape[1], device=query.device)
    positions = key_positions[-query.shape[1] :, None]
    is_hidden = key_positions > positions
    if formula.window:
        is_hidden |= key_positions <= positions - formula.window
    weights = scores.masked_fill(is_hidden, -torch.inf).softmax(-1)
    return (weights @ values).transpose(0, 1)


def _write_past(pages: torch.Tensor, chunk: Chunk, content: torch.Tensor) -> None:
    """Put what earlier steps computed into pages [pages, kv_heads, PAGE, D]."""
    positions = torch.arange(chunk.start, device=pages.device)
    numbers = torch.tensor(chunk.request.pages, device=pages.device)[positions // PAGE_SIZE]
    pages[numbers, :, positions % PAGE_SIZE] = content[:, : chunk.start].transpose(0, 1)
