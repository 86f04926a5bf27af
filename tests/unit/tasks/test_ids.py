"""Job ids: order, bits and what is accepted from outside."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from uuid import RFC_4122, UUID

import pytest

from tasks import ids
from tasks.ids import (
    follow_clock,
    format_file_id,
    format_job_id,
    format_project_id,
    parse_file_id,
    parse_job_id,
    uuid7,
    uuid7_floor,
    uuid7_unix_ms,
)

DIGITS = "01a207bebe81700098eea49960888d98"


def test_ids_grow_strictly_within_a_thread() -> None:
    ids = [uuid7() for _ in range(20_000)]

    assert ids == sorted(set(ids))


def test_ids_of_many_threads_are_distinct_and_grow_in_each() -> None:
    made: list[list[UUID]] = [[] for _ in range(8)]
    barrier = threading.Barrier(len(made))

    def make(mine: list[UUID]) -> None:
        barrier.wait()
        mine.extend(uuid7() for _ in range(2_000))

    threads = [threading.Thread(target=make, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(mine == sorted(mine) for mine in made)
    assert len({job_id for mine in made for job_id in mine}) == 16_000


def test_version_variant_and_time_stand_where_rfc_9562_says() -> None:
    before_ms = time.time_ns() // 1_000_000

    job_id = uuid7()

    assert job_id.version == 7
    assert job_id.variant == RFC_4122
    # Ids made in a burst run ahead of the clock by a few milliseconds.
    assert before_ms <= job_id.int >> 80 <= before_ms + 1_000


def test_clock_that_goes_back_makes_no_smaller_id(monkeypatch: pytest.MonkeyPatch) -> None:
    first = uuid7()
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000_000)

    second = uuid7()

    assert second > first


@pytest.fixture
def right_ms() -> Iterator[int]:
    """What this machine's clock shows; afterwards ids follow it again."""
    yield time.time_ns() // 1_000_000
    follow_clock(time.time_ns() // 1_000_000)


@pytest.mark.parametrize("offset_ms", [3_600_000, -3_600_000, 1_001 + 60_000, 0])
def test_ids_are_made_in_the_time_of_the_clock_they_follow(right_ms: int, offset_ms: int) -> None:
    follow_clock(right_ms + 7_200_000)
    uuid7()

    follow_clock(right_ms + offset_ms)

    made = [uuid7() for _ in range(3)]
    assert all(abs(uuid7_unix_ms(id_) - right_ms - offset_ms) < 30_000 for id_ in made)
    assert made == sorted(set(made))


def test_a_clock_that_is_nearly_right_is_not_corrected(right_ms: int) -> None:
    first = uuid7()

    follow_clock(time.time_ns() // 1_000_000 - 500)

    assert uuid7() > first
    assert uuid7_unix_ms(uuid7()) >= right_ms


@pytest.fixture
def stopped_ms(monkeypatch: pytest.MonkeyPatch) -> int:
    """What this machine's clock shows all the time; no id was made before."""
    monkeypatch.setattr(time, "time_ns", lambda: 2_000_000_000_000 * 1_000_000)
    monkeypatch.setattr(ids, "_offset_ms", 0)
    monkeypatch.setattr(ids, "_last_ms_and_seq", 0)
    return 2_000_000_000_000


@pytest.mark.parametrize(
    ("offset_ms", "followed_ms"), [(1_000, 0), (-1_000, 0), (1_001, 1_001), (-1_001, -1_001)]
)
def test_a_clock_is_followed_that_is_wrong_by_more_than_a_second(
    stopped_ms: int, offset_ms: int, followed_ms: int
) -> None:
    follow_clock(stopped_ms + offset_ms)

    assert uuid7_unix_ms(uuid7()) == stopped_ms + followed_ms


@pytest.mark.parametrize(
    ("offset_ms", "shown_ms"), [(4_000, 4_000), (3_001, 4_000), (3_000, 4_000), (2_999, 2_999)]
)
def test_ids_go_back_with_a_clock_that_turns_out_to_be_behind(
    stopped_ms: int, offset_ms: int, shown_ms: int
) -> None:
    """By no more than a second they wait for it: they grow on."""
    follow_clock(stopped_ms + 4_000)
    before = uuid7()

    follow_clock(stopped_ms + offset_ms)

    after = uuid7()
    assert uuid7_unix_ms(after) == stopped_ms + shown_ms
    assert (after > before) is (shown_ms == 4_000)


def test_a_millisecond_has_4096_ids(stopped_ms: int) -> None:
    made = [uuid7() for _ in range(4_097)]

    assert {uuid7_unix_ms(id_) for id_ in made[:-1]} == {stopped_ms}
    assert uuid7_unix_ms(made[-1]) == stopped_ms + 1


def test_floor_of_a_millisecond_is_below_its_ids_and_above_earlier_ones() -> None:
    job_id = uuid7()
    unix_ms = job_id.int >> 80

    assert uuid7_floor(unix_ms) <= job_id < uuid7_floor(unix_ms + 1)


def test_formatted_id_is_parsed_back() -> None:
    job_id = uuid7()

    assert parse_job_id(format_job_id(job_id)) == job_id
    assert parse_job_id(format_job_id(job_id, "chatcmpl-"), "chatcmpl-") == job_id


def test_files_and_projects_have_prefixes_of_their_own() -> None:
    id_ = UUID(hex=DIGITS)

    assert (format_file_id(id_), format_project_id(id_)) == (f"file-{DIGITS}", f"proj_{DIGITS}")
    assert parse_file_id(f"file-{DIGITS}") == id_
    assert parse_file_id(f"job_{DIGITS}") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "job_",
        DIGITS,
        f"job_{DIGITS.upper()}",
        f"job_{DIGITS[:-1]}",
        f"job_{DIGITS}0",
        f"job_{DIGITS}\n",
        f"job_{DIGITS[:-1]}g",
        f"job_job_{DIGITS[4:]}",
        f"resp_{DIGITS}",
        f"JOB_{DIGITS}",
        f"job_{UUID(DIGITS)}",
        f"job_0x{DIGITS[2:]}",
        f"job_{'_'.join(DIGITS)[:32]}",
        f"job_ {DIGITS[1:]}",
        "job_" + "\N{ARABIC-INDIC DIGIT ONE}" * 32,
        "job_" + "\N{FULLWIDTH DIGIT ONE}" * 32,
        "job_" + "\N{SUPERSCRIPT TWO}" * 32,
    ],
)
def test_anything_but_the_canonical_form_is_refused(text: str) -> None:
    assert parse_job_id(text) is None
