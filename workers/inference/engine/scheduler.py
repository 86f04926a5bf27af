"""Which tokens the next step computes: decodes first, then prefill in chunks up to the budget.

Pure policy for one model, no tensors. Slots in use are always the lowest ones, so that a batch
reads one contiguous piece of the KV cache. Device thread only.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from workers.inference.engine.request import Request


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `start` to `start + num_tokens` of one request, computed in this step."""

    request: Request
    start: int
    num_tokens: int

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def is_last(self) -> bool:
        """Does this chunk end with the newest token, so that the next one can be sampled?"""
        return self.end == self.request.num_tokens


@dataclass(frozen=True, slots=True)
class Move:
    """The first `num_tokens` cached tokens of slot `source` go to slot `target` before the step."""

    source: int
    target: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One step of one model. The first `num_decodes` chunks are decodes, in slot order."""

    chunks: tuple[Chunk, ...]
    num_decodes: int = 0
    moves: tuple[Move, ...] = ()

    @property
    def requests(self) -> list[Request]:
        return [chunk.request for chunk in self.chunks]

    @property
    def sampled(self) -> list[Request]:
        """Requests that get a token from this step, in chunk order."""
        return [chunk.request for chunk in self.chunks if chunk.is_last]

    @property
    def num_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks)


class Scheduler:
    """Owns the waiting and the running requests of one model, and their slots."""

    def __init__(self, *, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        # A budget below the slots would starve decodes of the same requests for ever.
        self._budget = max(max_num_batched_tokens, max_num_seqs + 1)
        self.max_num_seqs = max_num_seqs
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in order of admission

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Forget a request and free its slot. Unknown requests are ignored."""
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        request.slot = None

    def schedule(self) -> Batch:
        """Admit, then choose the step's tokens. Not idempotent: marks them as computed."""
        self._admit()
        moves = self._compact()
        decodes = [self._chunk(r, 1) for r in self.running if _is_decoding(r)]
        decodes.sort(key=lambda chunk: chunk.request.slot or 0)
        chunks = decodes + self._prefills(self._budget - len(decodes))
        for chunk in chunks:
            chunk.request.num_computed = chunk.end
        return Batch(tuple(chunks), len(decodes), moves)

    def _admit(self) -> None:
        taken = {request.slot for request in self.running}
        free = (slot for slot in range(self.max_num_seqs) if slot not in taken)
        while self.waiting and (slot := next(free, None)) is not None:
            request = self.waiting.popleft()
            request.slot = slot
            self.running.append(request)

    def _compact(self) -> tuple[Move, ...]:
        """Let requests in slots beyond the number in use take over the holes below."""
        num_used = len(self.running)
        taken = {request.slot for request in self.running}
        holes = [slot for slot in range(num_used) if slot not in taken]
        movers = [r for r in self.running if r.slot is not None and r.slot >= num_used]
        moves = [_move(request, hole) for request, hole in zip(movers, holes, strict=True)]
        return tuple(move for move in moves if move.num_tokens)

    def _prefills(self, budget: int) -> list[Chunk]:
        chunks = []
        for request in self.running:
            if _is_decoding(request) or budget <= 0:
                continue
            chunk = self._chunk(request, min(budget, request.num_tokens - request.num_computed))
            budget -= chunk.num_tokens
            chunks.append(chunk)
        return chunks

    @staticmethod
    def _chunk(request: Request, num_tokens: int) -> Chunk:
        return Chunk(request, request.num_computed, num_tokens)


def _is_decoding(request: Request) -> bool:
    """Is everything cached except the newest token? A first token alone still counts as prefill."""
    return 0 < request.num_computed == request.num_tokens - 1


def _move(request: Request, target: int) -> Move:
    assert request.slot is not None
    move = Move(request.slot, target, request.num_computed)
    request.slot = target
    return move
