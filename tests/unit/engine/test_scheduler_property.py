"""Random workloads on tiny page pools: all end, and no request reads what isn't its own."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.engine.requests import running_request
from workers.inference.engine.counters import Counters
from workers.inference.engine.executor import SampledToken
from workers.inference.engine.page_pool import PagePool
from workers.inference.engine.request import Request
from workers.inference.engine.scheduler import Batch, Scheduler
from workers.inference.engine.token_budget import TokenBudget

PAGE_SIZE = 2
MAX_STEPS = 3000  # far beyond what any of these workloads takes

# Few token ids and short prompts, so that prompts often begin alike.
PROMPTS = st.lists(st.integers(1, 2), min_size=1, max_size=9)


@dataclass(frozen=True)
class Arrival:
    """A request that comes at `step`, and is aborted after `patience` more steps if at all."""

    step: int
    prompt: list[int]
    max_tokens: int
    salt: str
    n: int
    patience: int | None


ARRIVALS = st.builds(
    Arrival,
    step=st.integers(0, 12),
    prompt=PROMPTS,
    max_tokens=st.integers(1, 10),
    salt=st.sampled_from(["one", "other"]),
    n=st.sampled_from([1, 1, 1, 3]),
    patience=st.sampled_from([None, None, None, 0, 2, 5, 9]),
)


class Device:
    """Memory of pages in which each token leaves what its keys and values depend on."""

    def __init__(self, *, is_cached: bool) -> None:
        self._is_cached = is_cached
        self._memory: dict[tuple[int, int], tuple[str, tuple[int, ...]]] = {}

    def run(self, batch: Batch) -> None:
        """Every chunk sees exactly its own request's earlier tokens, of its own scope."""
        for chunk in batch.chunks:
            request = chunk.request
            for position in range(chunk.end):
                place = request.pages[position // PAGE_SIZE], position % PAGE_SIZE
                content = self._scope(request), tuple(request.token_ids[: position + 1])
                if position >= chunk.start:
                    self._memory[place] = content
                assert self._memory[place] == content

    def _scope(self, request: Request) -> str:
        return request.cache_salt if self._is_cached else request.request_id


class World:
    """The step loop, with every promise of scheduler and pool checked at each step."""

    def __init__(self, *, num_pages: int, max_num_seqs: int, budget: int, is_cached: bool) -> None:
        self.counters = Counters()
        self.pool = PagePool(num_pages, PAGE_SIZE)
        self.scheduler = Scheduler(
            self.pool,
            TokenBudget(budget, least=max_num_seqs + 1),
            max_num_seqs=max_num_seqs,
            counters=self.counters,
            enable_prefix_cache=is_cached,
        )
        self.most = max(budget, max_num_seqs + 1)
        self.max_num_seqs = max_num_seqs
        self.device = Device(is_cached=is_cached)

    def step(self) -> None:
        batch = self.scheduler.schedule()
        self.check(batch)
        self.device.run(batch)
        sampled = batch.sampled
        self.scheduler.commit(batch)
        for request in sampled:
            # All choices go the same way for a while, so that generated pages meet as well.
            request.append(SampledToken(1 if request.num_generated < 4 else 1 + request.index))
            if request.is_finished:
                self.scheduler.remove(request)

    def check(self, batch: Batch) -> None:
        running = self.scheduler.running
        assert 0 < batch.num_tokens <= self.most
        assert len(running) <= self.max_num_seqs
        assert len(set(map(id, batch.requests))) == len(batch.chunks)
        assert all(chunk.start == chunk.request.num_computed for chunk in batch.chunks)
        assert all(chunk.num_tokens == 1 for chunk in batch.chunks[: batch.num_decodes])
        assert all(not request.pages for request in self.scheduler.waiting)
        for chunk in batch.chunks:
            assert len(chunk.request.pages) * PAGE_SIZE >= chunk.end
        held = {page for request in running for page in request.pages}
        assert self.pool.num_available == self.pool.num_pages - len(held)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(
    arrivals=st.lists(ARRIVALS, min_size=3, max_size=10),
    num_pages=st.integers(10, 13),
    max_num_seqs=st.integers(1, 5),
    budget=st.integers(1, 12),
    is_cached=st.booleans(),
)
def test_every_workload_ends_and_each_request_reads_only_its_own_tokens(
    arrivals: list[Arrival], num_pages: int, max_num_seqs: int, budget: int, is_cached: bool
) -> None:
    world = World(
        num_pages=num_pages, max_num_seqs=max_num_seqs, budget=budget, is_cached=is_cached
    )
    coming = [(arrival, choices(arrival, i)) for i, arrival in enumerate(arrivals)]

    for step in range(MAX_STEPS):
        for arrival, requests in coming:
            meet(world.scheduler, arrival, requests, step)
        if world.scheduler.has_work:
            world.step()
        elif step > 12:
            break

    assert not world.scheduler.has_work
    assert world.pool.num_available == num_pages
    for arrival, requests in coming:
        for request in requests:
            assert request.is_finished or arrival.patience is not None


def choices(arrival: Arrival, number: int) -> list[Request]:
    return [
        running_request(
            request_id=str(number),
            prompt_token_ids=arrival.prompt,
            cache_salt=arrival.salt,
            max_tokens=arrival.max_tokens,
            n=arrival.n,
            index=index,
            ignore_eos=True,
        )
        for index in range(arrival.n)
    ]


def meet(scheduler: Scheduler, arrival: Arrival, requests: list[Request], step: int) -> None:
    """Add the requests when they are due, and remove them when they are aborted."""
    for request in requests:
        if step == arrival.step:
            scheduler.add(request)
        if arrival.patience is not None and step == arrival.step + arrival.patience:
            scheduler.remove(request)
