"""Who is computed next: decodes first, prefill within the budget, slots without holes."""

from __future__ import annotations

from tests.unit.engine.requests import running_request
from workers.inference.engine.request import Request
from workers.inference.engine.scheduler import Batch, Move, Scheduler


def scheduler(max_num_seqs: int = 4, budget: int = 10) -> Scheduler:
    return Scheduler(max_num_seqs=max_num_seqs, max_num_batched_tokens=budget)


def add(target: Scheduler, *num_prompts: int) -> list[Request]:
    requests = [running_request(num_prompt) for num_prompt in num_prompts]
    for request in requests:
        target.add(request)
    return requests


def step(target: Scheduler) -> Batch:
    """Schedule and append a token to each request that gets one."""
    batch = target.schedule()
    for request in batch.sampled:
        request.append(7)
    return batch


def sizes(batch: Batch) -> list[int]:
    return [chunk.num_tokens for chunk in batch.chunks]


def test_prompts_are_packed_up_to_the_budget_and_the_last_is_cut() -> None:
    target = scheduler()
    add(target, 4, 5, 3)

    first, second = step(target), step(target)

    assert sizes(first) == [4, 5, 1]
    assert sizes(second) == [1, 1, 2]


def test_only_a_whole_prompt_gets_a_token() -> None:
    target = scheduler()
    (request,) = add(target, 15)

    first = target.schedule()
    second = target.schedule()

    assert first.sampled == []
    assert second.sampled == [request]


def test_decodes_come_before_prefill_and_leave_it_the_rest_of_the_budget() -> None:
    target = scheduler()
    add(target, 3, 3)
    step(target)
    add(target, 20)

    batch = step(target)

    assert sizes(batch) == [1, 1, 8]
    assert batch.num_decodes == 2


def test_single_token_prompt_is_prefill_first() -> None:
    target = scheduler()
    add(target, 1)

    assert [step(target).num_decodes, step(target).num_decodes] == [0, 1]


def test_requests_beyond_the_slots_wait_in_order() -> None:
    target = scheduler(max_num_seqs=2)
    first, second, third, fourth = add(target, 1, 1, 1, 1)
    step(target)

    target.remove(first)
    step(target)

    assert target.running == [second, third]
    assert list(target.waiting) == [fourth]


def test_freed_slot_goes_to_the_next_waiting_request_without_a_move() -> None:
    target = scheduler(max_num_seqs=2)
    first, _, third = add(target, 1, 1, 1)
    step(target)

    target.remove(first)
    batch = step(target)

    assert third.slot == 0
    assert batch.moves == ()


def test_hole_without_waiting_request_is_filled_by_the_highest_slot() -> None:
    target = scheduler()
    requests = add(target, 2, 2, 2)
    step(target)

    target.remove(requests[0])
    batch = step(target)

    assert batch.moves == (Move(source=2, target=0, num_tokens=2),)
    assert [chunk.request.slot for chunk in batch.chunks] == [0, 1]


def test_budget_below_the_slots_still_lets_prefill_in() -> None:
    target = scheduler(max_num_seqs=3, budget=1)
    add(target, 1, 1)
    step(target)
    add(target, 2)

    assert sizes(step(target)) == [1, 1, 2]


def test_continuation_is_prefilled_with_its_generated_tokens() -> None:
    target = scheduler()
    target.add(running_request(3, generated_token_ids=[5, 6]))

    assert sizes(target.schedule()) == [5]


def test_removing_an_unknown_request_changes_nothing() -> None:
    target = scheduler()

    target.remove(running_request())

    assert not target.has_work
