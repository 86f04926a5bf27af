"""Who is computed next: decodes first, prefill within the budget, admission while pages last."""

from __future__ import annotations

from typing import Any

from tests.unit.engine.requests import running_request
from workers.inference.engine.counters import Counters
from workers.inference.engine.executor import SampledToken
from workers.inference.engine.page_pool import PagePool
from workers.inference.engine.protocol import TokenLogprobs
from workers.inference.engine.request import Request
from workers.inference.engine.scheduler import Batch, Scheduler
from workers.inference.engine.token_budget import TokenBudget

PAGE_SIZE = 4
UNIQUE = iter(range(10**9))


class Bench:
    """A scheduler with the rest of a step: what is scheduled is committed and gets a token."""

    def __init__(
        self,
        *,
        max_num_seqs: int = 4,
        budget: int = 10,
        num_pages: int = 100,
        is_cached: bool = True,
        max_scored_rows: int = 100,
    ) -> None:
        self.pool = PagePool(num_pages, PAGE_SIZE)
        self.counters = Counters()
        self.budget = TokenBudget(budget, least=max_num_seqs + 1)
        self.scheduler = Scheduler(
            self.pool,
            self.budget,
            max_num_seqs=max_num_seqs,
            counters=self.counters,
            enable_prefix_cache=is_cached,
            max_scored_rows=max_scored_rows,
        )

    def add(self, num_prompt: int = 3, **fields: Any) -> Request:
        """A request; its prompt is its own unless given."""
        own = [next(UNIQUE) for _ in range(num_prompt)]
        settings: dict[str, Any] = {"prompt_token_ids": own, "max_tokens": 50} | fields
        request = running_request(**settings)
        self.scheduler.add(request)
        return request

    def step(self) -> Batch:
        batch = self.scheduler.schedule()
        sampled, scored = batch.sampled, batch.scored
        self.scheduler.commit(batch)
        for chunk in scored:
            ids = chunk.request.token_ids
            told = [TokenLogprobs(ids[row + 1], -1.0) for row in chunk.rows_to_score]
            chunk.request.tell_prompt(told)
        for request in sampled:
            request.append(SampledToken(7))
            if request.is_finished:
                self.scheduler.remove(request)
        return batch

    def finish(self, request: Request) -> None:
        """Take steps until the request is over."""
        while not request.is_finished:
            self.step()


def sizes(batch: Batch) -> list[int]:
    return [chunk.num_tokens for chunk in batch.chunks]


def test_prompts_are_packed_up_to_the_budget_and_the_last_is_cut() -> None:
    bench = Bench()
    for num_prompt in (4, 5, 3):
        bench.add(num_prompt)

    first, second = bench.step(), bench.step()

    assert sizes(first) == [4, 5, 1]
    assert sizes(second) == [1, 1, 2]


def test_only_a_whole_prompt_gets_a_token() -> None:
    bench = Bench()
    request = bench.add(15)

    first, second = bench.step(), bench.step()

    assert first.sampled == []
    assert second.chunks[0].request is request
    assert request.num_generated == 1


def test_decodes_come_before_prefill_and_leave_it_the_rest_of_the_budget() -> None:
    bench = Bench()
    bench.add(3)
    bench.add(3)
    bench.step()
    bench.add(20)

    batch = bench.step()

    assert sizes(batch) == [1, 1, 8]
    assert batch.num_decodes == 2


def test_single_token_prompt_is_prefill_first() -> None:
    bench = Bench()
    bench.add(1)

    assert [bench.step().num_decodes, bench.step().num_decodes] == [0, 1]


def test_requests_beyond_the_limit_wait_in_order() -> None:
    bench = Bench(max_num_seqs=2)
    first, second, third, fourth = (bench.add(1) for _ in range(4))
    bench.step()

    bench.scheduler.remove(first)
    bench.step()

    assert bench.scheduler.running == [second, third]
    assert list(bench.scheduler.waiting) == [fourth]


def test_budget_below_the_limit_of_requests_still_lets_prefill_in() -> None:
    bench = Bench(max_num_seqs=3, budget=1)
    bench.add(1)
    bench.add(1)
    bench.step()
    bench.add(2)

    assert sizes(bench.step()) == [1, 1, 2]


def test_continuation_is_prefilled_with_its_generated_tokens() -> None:
    bench = Bench()
    bench.add(3, generated_token_ids=[[5, 6]])

    assert sizes(bench.step()) == [5]


def test_removing_an_unknown_request_changes_nothing() -> None:
    bench = Bench()

    bench.scheduler.remove(running_request())

    assert not bench.scheduler.has_work


def test_step_that_is_not_committed_is_scheduled_again() -> None:
    bench = Bench()
    bench.add(PAGE_SIZE)
    bench.step()
    bench.add(20)

    first = bench.scheduler.schedule()
    bench.budget.shrink_below(10)
    second = bench.scheduler.schedule()

    assert (sizes(first), sizes(second)) == ([1, 9], [1, 4])
    assert bench.pool.num_available == 100 - 2 - 5


def test_page_is_taken_when_the_boundary_is_crossed() -> None:
    bench = Bench()
    request = bench.add(PAGE_SIZE)

    num_pages = []
    for _ in range(PAGE_SIZE + 2):
        bench.step()
        num_pages.append(len(request.pages))

    assert num_pages == [1, 2, 2, 2, 2, 3]


def test_request_waits_until_there_are_pages_for_all_its_tokens() -> None:
    bench = Bench(num_pages=6)
    first = bench.add(12, max_tokens=2)
    second = bench.add(14, max_tokens=2)

    bench.finish(first)
    batch = bench.step()

    assert second.num_generated == 0
    assert [chunk.request for chunk in batch.chunks] == [second]


def test_admission_leaves_a_page_for_each_running_request_that_grows() -> None:
    bench = Bench(num_pages=4)
    growing, waiting = bench.add(4, max_tokens=8), bench.add(9, max_tokens=3)

    bench.step()

    assert bench.scheduler.running == [growing]
    assert list(bench.scheduler.waiting) == [waiting]


def test_admission_leaves_nothing_for_requests_that_have_all_their_pages() -> None:
    bench = Bench(num_pages=4, budget=20)
    bench.add(4, max_tokens=1)
    bench.add(9, max_tokens=3)

    assert sizes(bench.step()) == [4, 9]


def test_latest_request_is_preempted_and_comes_back_first() -> None:
    bench = Bench(num_pages=4, budget=20)
    first, second = bench.add(4, max_tokens=9), bench.add(4, max_tokens=9)
    while second.pages or not second.num_generated:
        bench.step()
    third = bench.add(4, max_tokens=1)
    generated = list(second.token_ids)

    assert list(bench.scheduler.waiting) == [second, third]
    assert second.num_computed == 0
    assert bench.counters.num_preemptions == 1
    bench.finish(first)
    bench.finish(second)
    assert second.token_ids[: len(generated)] == generated
    assert bench.counters.num_preemptions == 1


def test_a_preempted_request_is_not_passed_by_smaller_ones() -> None:
    bench = Bench(num_pages=4, budget=20)
    first = bench.add(4, max_tokens=9)
    second = bench.add(4, max_tokens=9)
    num_before = 0
    while second.pages or not second.num_generated:
        num_before = second.num_generated
        new = bench.add(1, max_tokens=1)
        batch = bench.step()

    assert batch.requests == [first]
    assert (second.num_generated, second.num_computed) == (num_before, 0)
    assert (bench.scheduler.waiting[0], bench.scheduler.waiting[-1]) == (second, new)
    assert bench.scheduler.running == [first]


def test_nobody_is_admitted_in_the_step_that_preempts() -> None:
    bench = Bench(num_pages=5, budget=20)
    # Both say the same, so that what is preempted finds most of its pages with the other at once.
    first, second = (bench.add(prompt_token_ids=[1, 2, 3], max_tokens=9) for _ in range(2))

    while not bench.counters.num_preemptions:
        batch = bench.step()

    assert batch.requests == bench.scheduler.running == [first]
    assert list(bench.scheduler.waiting) == [second]
    assert bench.step().requests == [first, second]


def test_common_beginning_of_an_earlier_request_is_not_computed_again() -> None:
    bench = Bench()
    common = [next(UNIQUE) for _ in range(8)]
    bench.finish(bench.add(prompt_token_ids=[*common, 1], max_tokens=1))

    later = bench.add(prompt_token_ids=[*common, 2])
    batch = bench.step()

    assert sizes(batch) == [1]
    assert later.cached_tokens == 8
    assert (bench.counters.prefix_queries, bench.counters.prefix_hits) == (18, 8)


def test_generated_tokens_are_found_too() -> None:
    bench = Bench()
    first = bench.add(3, max_tokens=10)
    bench.finish(first)

    later = bench.add(prompt_token_ids=[*first.token_ids, 5])
    bench.step()

    assert later.cached_tokens == 12


def test_newest_token_is_computed_even_if_all_are_cached() -> None:
    bench = Bench()
    prompt = [next(UNIQUE) for _ in range(8)]
    bench.finish(bench.add(prompt_token_ids=prompt, max_tokens=1))

    later = bench.add(prompt_token_ids=prompt)
    batch = bench.step()

    assert sizes(batch) == [4]
    assert later.num_generated == 1


def test_one_token_after_the_cached_ones_is_a_decode() -> None:
    bench = Bench()
    prompt = [next(UNIQUE) for _ in range(8)]
    bench.finish(bench.add(prompt_token_ids=prompt, max_tokens=1))
    running = bench.add()
    bench.step()

    late = bench.add(prompt_token_ids=[*prompt, 5])
    new = bench.add()
    batch = bench.step()

    assert batch.num_decodes == 2
    assert batch.requests == [running, late, new]


def test_cached_tokens_are_those_of_the_first_admission() -> None:
    bench = Bench(num_pages=4, budget=20)
    bench.add(4, max_tokens=9)
    second = bench.add(4, max_tokens=9)

    bench.finish(second)

    assert bench.counters.num_preemptions == 1
    assert second.cached_tokens == 0
    assert bench.counters.prefix_queries == 8


def test_nothing_is_shared_between_salts() -> None:
    bench = Bench()
    prompt = [next(UNIQUE) for _ in range(9)]
    bench.finish(bench.add(prompt_token_ids=prompt, cache_salt="one", max_tokens=1))

    other = bench.add(prompt_token_ids=prompt, cache_salt="other")
    batch = bench.step()

    assert sizes(batch) == [9]
    assert other.cached_tokens == 0


def test_equal_prompts_of_other_salts_do_not_wait_for_each_other() -> None:
    bench = Bench(budget=30)
    prompt = [next(UNIQUE) for _ in range(9)]
    for salt in ("one", "other"):
        bench.add(prompt_token_ids=prompt, cache_salt=salt)

    assert sizes(bench.step()) == [9, 9]


def test_without_prefix_cache_nothing_is_shared_between_requests() -> None:
    bench = Bench(is_cached=False)
    prompt = [next(UNIQUE) for _ in range(9)]
    bench.finish(bench.add(prompt_token_ids=prompt, max_tokens=1))

    bench.add(prompt_token_ids=prompt, request_id="other")

    assert sizes(bench.step()) == [9]


def test_burst_with_a_common_beginning_computes_it_once() -> None:
    bench = Bench(budget=8)
    common = [next(UNIQUE) for _ in range(12)]
    requests = [bench.add(prompt_token_ids=[*common, i, i]) for i in range(3)]

    computed = [sizes(bench.step()) for _ in range(3)]

    assert computed == [[8], [6], [1, 2, 2]]
    assert [request.cached_tokens for request in requests] == [0, 12, 12]


def test_others_pass_a_request_that_is_held_back() -> None:
    bench = Bench(budget=30)
    common = [next(UNIQUE) for _ in range(12)]
    first, *held = (bench.add(prompt_token_ids=[*common, i]) for i in range(4))
    other = bench.add(5)

    batch = bench.step()

    assert batch.requests == [first, other]
    assert list(bench.scheduler.waiting) == held


def test_step_looks_past_a_bounded_number_of_requests_that_are_held_back() -> None:
    bench = Bench(budget=30)
    common = [next(UNIQUE) for _ in range(12)]
    first, *held = (bench.add(prompt_token_ids=[*common, i]) for i in range(65))
    other = bench.add(5)

    batch = bench.step()

    assert batch.requests == [first]
    assert list(bench.scheduler.waiting) == [*held, other]


def test_request_that_left_while_it_was_computed_counts_no_tokens() -> None:
    bench = Bench()
    request = bench.add(8)
    batch = bench.scheduler.schedule()

    bench.scheduler.remove(request)
    bench.scheduler.commit(batch)

    assert request.num_computed == 0
    assert bench.pool.num_available == 100


def test_request_is_no_longer_held_back_when_the_one_it_waits_for_leaves() -> None:
    bench = Bench(budget=8)
    common = [next(UNIQUE) for _ in range(12)]
    first, held = (bench.add(prompt_token_ids=[*common, i]) for i in range(2))
    bench.step()

    bench.scheduler.remove(first)
    batch = bench.step()

    assert batch.requests == [held]
    assert held.cached_tokens == 8


def test_choices_share_their_prompt_with_and_without_prefix_cache() -> None:
    for is_cached in (True, False):
        bench = Bench(budget=30, is_cached=is_cached)
        prompt = [next(UNIQUE) for _ in range(10)]
        choices = [bench.add(prompt_token_ids=prompt, n=3, index=i) for i in range(3)]

        computed = [sizes(bench.step()) for _ in range(2)]

        assert computed == [[10], [1, 2, 2]]
        assert len({choice.pages[1] for choice in choices}) == 1
        assert len({choice.pages[2] for choice in choices}) == 3


def test_released_pages_of_all_requests_are_available_again() -> None:
    bench = Bench(budget=30)
    requests = [bench.add(num_prompt) for num_prompt in (3, 9, 12)]
    bench.step()
    bench.step()

    for request in requests:
        bench.scheduler.remove(request)

    assert bench.pool.num_available == 100


# Prompts that are scored.


def test_a_step_scores_no_more_rows_than_may_be_and_leaves_the_budget_to_others() -> None:
    bench = Bench(budget=10, max_scored_rows=4)
    scored = bench.add(9, prompt_logprobs=0)
    also = bench.add(3, prompt_logprobs=0)
    plain = bench.add(5)

    steps = [bench.step() for _ in range(4)]

    # The last row of a prompt, which the next token is drawn from, is none of those.
    assert [sizes(step) for step in steps] == [[4, 5], [1, 5], [1, 1, 3], [1, 1, 1]]
    assert [len(step.scored_rows) for step in steps] == [4, 4, 2, 0]
    assert steps[1].scored_rows == [1, 2, 3, 4]
    assert (scored.num_scored, also.num_scored, plain.is_scoring) == (9, 3, False)


def test_a_scored_prompt_begins_from_no_page_whose_scores_it_needs() -> None:
    bench = Bench(budget=30)
    prompt = list(range(1, 18))
    bench.finish(bench.add(prompt_token_ids=prompt, max_tokens=1))

    plain = bench.add(prompt_token_ids=prompt, max_tokens=1)
    whole = bench.add(prompt_token_ids=prompt, max_tokens=1, prompt_logprobs=0)
    rest = bench.add(prompt_token_ids=prompt, max_tokens=1, prompt_logprobs=0, num_scored=10)
    [*chunks] = bench.step().chunks

    assert [chunk.request for chunk in chunks] == [plain, whole, rest]
    assert [chunk.start for chunk in chunks] == [16, 0, 8]  # the row of token 9 tells of token 10
    assert [len(chunk.rows_to_score) for chunk in chunks] == [0, 16, 7]


def test_a_preempted_prompt_tells_nothing_twice() -> None:
    bench = Bench(max_num_seqs=2, budget=6, num_pages=8, max_scored_rows=1)
    bench.add(8, max_tokens=22)
    scored = bench.add(20, max_tokens=2, prompt_logprobs=0)
    num_told = 1  # the first follows none

    while not scored.is_finished:
        num_told += len(bench.step().scored_rows)

    assert bench.counters.num_preemptions > 0
    assert num_told == scored.num_scored == 20
