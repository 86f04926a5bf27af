"""How many tokens a step may compute, by its time and by the device's memory."""

from __future__ import annotations

from workers.inference.engine.token_budget import LONG_STEP_S, TokenBudget


def full_steps(budget: TokenBudget, num: int, *, seconds_a_token: float) -> list[int]:
    """Take steps as large as they may be; the budget after each."""
    values = []
    for _ in range(num):
        budget.note_clean_step(budget.value, budget.value * seconds_a_token)
        values.append(budget.value)
    return values


def test_it_begins_small_and_doubles_while_full_steps_are_short() -> None:
    budget = TokenBudget(1000, least=33, first=64)

    assert budget.value == 64
    assert full_steps(budget, 5, seconds_a_token=1e-4) == [128, 256, 512, 1000, 1000]


def test_steps_that_are_not_full_say_nothing() -> None:
    budget = TokenBudget(1000, least=33, first=64)

    budget.note_clean_step(32, 0.001)

    assert budget.value == 64


def test_no_full_step_of_a_slow_device_takes_much_longer_than_it_may() -> None:
    budget = TokenBudget(2048, least=33, first=64)
    seconds_a_token = LONG_STEP_S / 300

    values = full_steps(budget, 12, seconds_a_token=seconds_a_token)

    assert max(values) * seconds_a_token <= 2 * LONG_STEP_S
    assert all(250 <= value <= 300 for value in values[4:])


def test_a_device_that_recovers_gets_full_steps_again() -> None:
    budget = TokenBudget(1024, least=33)
    budget.note_clean_step(1024, 4 * LONG_STEP_S)
    assert budget.value == 256

    assert full_steps(budget, 3, seconds_a_token=1e-4)[-1] == 1024


def test_decodes_are_never_kept_out_however_slow_they_are() -> None:
    budget = TokenBudget(1024, least=33)

    budget.note_clean_step(32, 60.0)

    assert budget.value == 33


def test_memory_bounds_it_beside_time() -> None:
    budget = TokenBudget(1024, least=33)
    assert budget.shrink_below(300)
    assert budget.value == 256

    full_steps(budget, 63, seconds_a_token=1e-4)
    assert budget.value == 256

    assert full_steps(budget, 1, seconds_a_token=1e-4) == [512]


def test_nothing_is_smaller_than_the_least() -> None:
    budget = TokenBudget(1024, least=33)

    assert budget.shrink_below(34)
    assert budget.value == 33
    assert not budget.shrink_below(33)
