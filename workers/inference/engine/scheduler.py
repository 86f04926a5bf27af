"""Which tokens the next step computes: decodes first, then prefill in chunks up to the budget.

Pure policy for one model, no tensors. Requests are admitted in order of arrival, and preempted in
reverse when the pages of the KV cache run out: the oldest one always gets on, so all of them end.
Device thread only.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from workers.inference.engine.counters import Counters
from workers.inference.engine.page_digests import extend_page_digests
from workers.inference.engine.page_pool import PagePool
from workers.inference.engine.request import Request
from workers.inference.engine.token_budget import TokenBudget

# Waiting requests that may be passed by others in one step, so that its cost has a bound.
_MAX_PASSED = 64


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `start` to `start + num_tokens` of one request, computed in this step."""

    request: Request
    start: int
    num_tokens: int
    rows_to_score: range = range(0)  # tokens whose scores tell how likely the next of a prompt is

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def is_last(self) -> bool:
        """Does this chunk end with the newest token, so that the next one can be sampled?"""
        return self.start + self.num_tokens == len(self.request.token_ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step of one model. The first `num_decodes` chunks are decodes, of one token each."""

    chunks: tuple[Chunk, ...]
    num_decodes: int = 0

    @property
    def requests(self) -> list[Request]:
        return [chunk.request for chunk in self.chunks]

    @property
    def sampled(self) -> list[Request]:
        """Requests that get a token from this step, in chunk order."""
        return [chunk.request for chunk in self.chunks if chunk.is_last]

    @property
    def scored(self) -> list[Chunk]:
        """Chunks of prompts that are being scored, in order."""
        return [c for c in self.chunks[self.num_decodes :] if c.request.is_scoring]

    @property
    def scored_rows(self) -> list[int]:
        """Of all tokens packed in one row, those whose scores tell of prompts, in chunk order. The
        logits of a step are those of `sampled`, then these.
        """
        rows: list[int] = []
        begin = self.num_decodes
        for chunk in self.chunks[self.num_decodes :]:
            rows += (begin + row - chunk.start for row in chunk.rows_to_score)
            begin += chunk.num_tokens
        return rows

    @property
    def num_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks)


class Scheduler:
    """Owns the waiting and the running requests of one model, and their pages.

    With `enable_prefix_cache` off, only the choices of one request share their prompt's pages.
    """

    def __init__(
        self,
        pool: PagePool,
        budget: TokenBudget,
        *,
        max_num_seqs: int,
        counters: Counters,
        enable_prefix_cache: bool = True,
        max_scored_rows: int = 256,
    ) -> None:
        """`max_scored_rows`: of prompts in a step, each with scores of the whole vocabulary."""
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in order of admission
        self._pool = pool
        self._budget = budget  # at least max_num_seqs + 1, or decodes would starve prefills
        self._max_num_seqs = max_num_seqs
        self._counters = counters
        self._max_scored_rows = max_scored_rows
        self._is_private = not enable_prefix_cache
        # Prompt pages that a running request has yet to compute.
        self._pending: dict[bytes, Request] = {}
        # The first waiting request that found no pages, and what was left for it then.
        self._refused: tuple[Request, int] | None = None

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, request: Request) -> None:
        """Queue a request that holds no pages. Alone it must fit into the pool."""
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Forget a request and release its pages. Unknown requests are ignored."""
        if request.pages:
            self.running.remove(request)
            self._release(request)
            return
        with suppress(ValueError):
            self.waiting.remove(request)

    def schedule(self) -> Batch:
        """Choose the step's tokens, admit and preempt. Without `commit` they are chosen again."""
        step = _Step(self._budget.value, self._max_scored_rows)
        num_waiting = len(self.waiting)
        self._go_on(step)
        if len(self.waiting) == num_waiting:  # else one was preempted: there is no room for others
            self._admit(step)
        return Batch((*step.decodes, *step.prefills), len(step.decodes))

    def commit(self, batch: Batch) -> None:
        """The batch has been computed: its tokens count, and its full pages can be found."""
        for chunk in batch.chunks:
            request, end = chunk.request, chunk.end
            if not request.pages:  # it has left
                continue
            request.num_computed = end
            page_size = self._pool.page_size
            first, last = chunk.start // page_size, end // page_size
            if last > first:
                self._publish(request, first, last)

    def _go_on(self, step: _Step) -> None:
        """Put the running requests into the step, decodes before prefills."""
        prefilling, i = [], 0
        while i < len(self.running):  # preemption shortens it from its end
            request = self.running[i]
            i += 1
            if not _is_decode(request):
                prefilling.append(request)
            elif self._has_page(request):
                step.add(request)
        for request in prefilling:
            step.add(request)

    def _has_page(self, request: Request) -> bool:
        """Get the page for its newest token, at the cost of later requests. False: preempted."""
        if request.num_tokens <= len(request.pages) * self._pool.page_size:
            return True
        while (page := self._pool.take_one()) is None:
            latest = self.running.pop()
            self._preempt(latest)
            if latest is request:
                return False
        request.pages.append(page)
        return True

    def _preempt(self, request: Request) -> None:
        """It gives up its pages and will be computed again, before anything else that waits."""
        self._release(request)
        self.waiting.appendleft(request)
        self._counters.num_preemptions += 1

    def _release(self, request: Request) -> None:
        self._pool.release(request.pages)
        for digest in request.page_digests[request.num_computed // self._pool.page_size :]:
            self._settle(digest, request)
        request.pages, request.num_computed = [], 0

    def _admit(self, step: _Step) -> None:
        """Let in waiting requests in order; one whose pages are being computed may be passed."""
        passed: list[Request] = []
        while self._may_admit(step, len(passed)) and not self._is_refused_again(self.waiting[0]):
            request = self.waiting[0]
            found = self._find_pages(request)
            if found is None:
                passed.append(self.waiting.popleft())
                continue
            if not self._take_pages(request, found):
                self._refused = request, self._headroom
                break
            self.running.append(self.waiting.popleft())
            step.add(request)
        self.waiting.extendleft(reversed(passed))

    def _may_admit(self, step: _Step, num_passed: int) -> bool:
        has_slot = len(self.running) < self._max_num_seqs
        return bool(self.waiting) and has_slot and step.budget > 0 and num_passed < _MAX_PASSED

    def _is_refused_again(self, request: Request) -> bool:
        """Is there no more room than when it found no pages? Spares it a look-up every step."""
        if self._refused is None or self._refused[0] is not request:
            return False
        return self._headroom <= self._refused[1]

    def _find_pages(self, request: Request) -> list[int] | None:
        """Cached pages it can start from; None if a running request is computing its next one."""
        if request.awaited_digest in self._pending or _awaits_scores(request):
            return None
        extend_page_digests(request, self._pool.page_size, is_private=self._is_private)
        digests = request.page_digests[: request.num_skippable // self._pool.page_size]
        found = self._pool.match(digests)
        if len(found) < len(digests) and digests[len(found)] in self._pending:
            request.awaited_digest = digests[len(found)]
            return None
        return found

    def _take_pages(self, request: Request, found: list[int]) -> bool:
        """Pages for all its tokens, if that leaves room for the running requests to grow."""
        num_new = self._pool.num_pages_for(request.num_tokens) - len(found)
        pages = self._pool.take(found, num_new, reserve=self._num_growing)
        if pages is None:
            return False
        request.pages = pages
        request.num_computed = len(found) * self._pool.page_size
        for digest in request.page_digests[len(found) :]:
            self._pending.setdefault(digest, request)
        self._count_hits(request)
        return True

    @property
    def _num_growing(self) -> int:
        """Running requests that may need another page."""
        num_pages_for = self._pool.num_pages_for
        # The last token of a request is never computed.
        return sum(len(r.pages) < num_pages_for(r.max_num_tokens - 1) for r in self.running)

    @property
    def _headroom(self) -> int:
        return self._pool.num_available - self._num_growing

    def _count_hits(self, request: Request) -> None:
        if request.cached_tokens is not None:  # what a preempted request computed itself is no hit
            return
        request.cached_tokens = min(request.num_computed, request.num_prompt)
        self._counters.prefix_queries += request.num_prompt
        self._counters.prefix_hits += request.cached_tokens

    def _publish(self, request: Request, first: int, last: int) -> None:
        extend_page_digests(request, self._pool.page_size, is_private=self._is_private)
        digests = request.page_digests[first:last]  # none for a request that shares with nobody
        for page, digest in zip(request.pages[first:last], digests, strict=False):
            self._pool.publish(page, digest)
            self._settle(digest, request)

    def _settle(self, digest: bytes, request: Request) -> None:
        if self._pending.get(digest) is request:
            del self._pending[digest]


class _Step:
    """A batch in the making."""

    def __init__(self, budget: int, max_scored_rows: int) -> None:
        self.budget = budget  # tokens left
        self._num_rows_left = max_scored_rows
        self.decodes: list[Chunk] = []
        self.prefills: list[Chunk] = []

    def add(self, request: Request) -> None:
        """As much of the request as the budget allows."""
        start = request.num_computed
        end = start + min(request.num_tokens - start, self.budget)
        rows = request.rows_to_score(start, end)
        if len(rows) > self._num_rows_left:
            rows = rows[: self._num_rows_left]
            end = rows.stop
        num_tokens = end - start
        if num_tokens <= 0:
            return
        self._num_rows_left -= len(rows)
        chunks = self.decodes if _is_decode(request) else self.prefills
        chunks.append(Chunk(request, start, num_tokens, rows))
        self.budget -= num_tokens


def _awaits_scores(request: Request) -> bool:
    """Must another choice tell of their prompt first?"""
    return request.scorer is not None and request.scorer.is_scoring


def _is_decode(request: Request) -> bool:
    """Is everything cached except the newest token? A first token alone still counts as prefill."""
    return 0 < request.num_computed == len(request.token_ids) - 1
