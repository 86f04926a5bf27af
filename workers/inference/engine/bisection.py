"""What to do with a batch that failed: find the requests at fault, and compute all the others.

Halves are tried on their own until a failing piece is one request. Running a chunk again is
harmless, so nothing has to be undone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from workers.inference.engine.errors import EngineError
from workers.inference.engine.executor import SampledToken
from workers.inference.engine.protocol import TokenLogprobs
from workers.inference.engine.request import Request
from workers.inference.engine.scheduler import Batch, Chunk

# When this many requests failed alone and not one piece went well, the device itself is at fault.
_MAX_FAILURES_ONLY = 3


@dataclass(frozen=True, slots=True)
class Computed:
    """A batch that went well: what was sampled for each request of `sampled`, and what was told of
    the prompt of each of `scored`.
    """

    batch: Batch
    sampled: Sequence[Request]
    tokens: Sequence[SampledToken | EngineError]
    scored: Sequence[Request] = ()
    scores: Sequence[Sequence[TokenLogprobs]] = ()


@dataclass(slots=True)
class Outcome:
    """What became of a batch."""

    computed: list[Computed] = field(default_factory=list)
    failed: list[tuple[Request, Exception]] = field(default_factory=list)

    @property
    def is_hopeless(self) -> bool:
        return not self.computed and len(self.failed) >= _MAX_FAILURES_ONLY


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, EngineError) and error.code == "out_of_memory"


def bisect(compute: Callable[[Batch], Computed], batch: Batch, error: Exception) -> Outcome:
    """Compute in pieces a batch that raised `error`. One request at fault takes 2 log2(n) runs."""
    outcome = Outcome()
    broken = [(batch, error)]
    while broken:
        batch, error = broken.pop()
        pieces = [] if outcome.is_hopeless else _split(batch, error)
        if not pieces:
            outcome.failed += [(request, error) for request in batch.requests]
        for piece in pieces:
            try:
                outcome.computed.append(compute(piece))
            except Exception as piece_error:  # whatever it is, it is this piece's alone
                broken.append((piece, piece_error))
    return outcome


def _split(batch: Batch, error: Exception) -> list[Batch]:
    """The halves of a batch; of one request's chunk a smaller one, if that can help; else none."""
    chunks = batch.chunks
    if len(chunks) > 1:
        middle, num_decodes = len(chunks) // 2, batch.num_decodes
        return [
            Batch(chunks[:middle], min(num_decodes, middle)),
            Batch(chunks[middle:], max(num_decodes - middle, 0)),
        ]
    (chunk,) = chunks
    if is_out_of_memory(error) and chunk.num_tokens > 1:
        num_tokens = chunk.num_tokens // 2
        rows = chunk.request.rows_to_score(chunk.start, chunk.start + num_tokens)
        return [Batch((Chunk(chunk.request, chunk.start, num_tokens, rows),))]
    return []
