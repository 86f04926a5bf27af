"""One attempt's events: what is given to Redis, what is stored, and what comes too late."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from store.attempts import Checkpoint, Claimed
from tasks.events import Event, decompress_event_log, make_gap, texts_of
from tasks.ids import uuid7
from tasks.stream import Append, Code, Reply
from tasks.token_ids import pack_token_ids, unpack_token_ids
from tests.support.jobs import PRICES
from workers.inference import job_stream
from workers.inference.choices import from_checkpoint
from workers.inference.engine.errors import EngineError
from workers.inference.engine.protocol import FinishReason, TokenLogprobs, TokenOutput
from workers.inference.job_stream import RENEW_S, JobStream


def new_stream(
    *history: Event,
    num_choices: int = 1,
    checkpoint: Checkpoint | None = None,
    sampling: dict[str, Any] | None = None,
) -> JobStream:
    claimed = Claimed(
        job_id=uuid7(),
        tenant_id=uuid7(),
        attempt=1,
        fail_count=0,
        max_fails=3,
        model="stub",
        service_tier="default",
        input_tokens=1,
        max_output_tokens=100,
        prices=PRICES,
        remaining_s=60.0,
        prompt_token_ids=b"\x01\x00\x00\x00",
        sampling=sampling or {},
        checkpoint=Checkpoint(),
        num_choices=num_choices,
    )
    choices = from_checkpoint(checkpoint or Checkpoint(), num_choices)
    return JobStream(claimed, history=history, choices=choices)


def output(
    text: str, *ids: int, index: int = 0, reason: FinishReason | None = None, **fields: Any
) -> TokenOutput:
    return TokenOutput(
        request_id="r", token_ids=ids, text=text, index=index, finish_reason=reason, **fields
    )


def pending_numbers(stream: JobStream) -> list[int]:
    append = stream.pending()
    return [event.seq for event in append.events] if append else []


def test_events_are_pending_until_redis_confirms_them() -> None:
    stream = new_stream()
    stream.add_started()
    stream.add_output(output("a", 1))

    before = pending_numbers(stream)
    stream.confirm(Reply(Code.OK, 1))
    after_one = pending_numbers(stream)
    stream.confirm(Reply(Code.OK, 2))

    assert (before, after_one, pending_numbers(stream)) == ([1, 2], [2], [])


def test_how_long_the_stream_is_kept_is_renewed_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=time.monotonic())
    monkeypatch.setattr(job_stream, "time", SimpleNamespace(monotonic=lambda: clock.now))
    stream = new_stream()
    stream.add_started()

    first = _pending(stream).renews
    clock.now += RENEW_S
    due = [_pending(stream).renews for _ in range(2)]
    stream.confirm(Reply(Code.HOLE, 0), renewed=True)
    still_due = _pending(stream).renews
    stream.confirm(Reply(Code.OK, 1), renewed=True)
    stream.add_output(output("a", 1))

    assert (first, due, still_due) == (False, [True, True], True)
    assert not _pending(stream).renews


def _pending(stream: JobStream) -> Append:
    append = stream.pending()
    assert append is not None
    return append


def test_hole_makes_everything_pending_again() -> None:
    stream = new_stream()
    stream.add_started()
    stream.confirm(Reply(Code.OK, 1))
    stream.add_output(output("a", 1))

    stream.confirm(Reply(Code.HOLE, 0))

    append = stream.pending()
    assert append is not None
    assert append.resets_log
    assert pending_numbers(stream) == [1, 2]


def test_history_behind_a_gap_is_numbered_on() -> None:
    checkpoint = Checkpoint(seq=3, token_ids=pack_token_ids([1, 2]), text="ab")
    stream = new_stream(make_gap(2_000_000, ["ab"]), checkpoint=checkpoint)
    stream.must_reset_log()

    stream.add_output(output("c", 3))
    before = pending_numbers(stream)
    stream.confirm(Reply(Code.OK, 2_000_001))
    stream.add_output(output("d", 4))

    append = stream.pending()
    assert append is not None
    assert not append.resets_log
    assert before == [2_000_000, 2_000_001]
    assert pending_numbers(stream) == [2_000_002]
    (choice,) = stream.choices
    assert (choice.text, choice.token_ids, stream.attempt_tokens) == ("abcd", [1, 2, 3, 4], 2)


def test_only_an_append_with_the_marker_is_final() -> None:
    stream = new_stream()
    stream.add_started()

    before = stream.pending()
    stream.add_marker()
    after = stream.pending()

    assert before is not None
    assert after is not None
    assert (before.is_final, after.is_final) == (False, True)


def test_stored_log_is_what_readers_get() -> None:
    stream = new_stream()
    stream.add_started()
    stream.add_output(output("a", 1, reason=FinishReason.STOP))

    stored = decompress_event_log(stream.event_log())
    marker_seq = stream.marker_seq()
    stream.add_marker()
    stream.add_marker()

    append = stream.pending()
    assert append is not None
    assert stored == list(append.events)
    assert marker_seq == stored[-1].seq == stream.marker_seq()


def test_output_after_the_end_is_dropped() -> None:
    """Else the marker would get another number than in the stored log."""
    stream = new_stream()
    stream.add_output(output("a", 1))
    silence = EngineError("engine_unresponsive", "")
    stream.end(TokenOutput(request_id="r", finish_reason=FinishReason.ERROR, error=silence))
    number = stream.marker_seq()

    stream.add_output(output("late", 2, reason=FinishReason.STOP))

    assert stream.terminal is not None
    assert stream.terminal.finish_reason is FinishReason.ERROR
    assert (stream.choices[0].text, stream.marker_seq()) == ("a", number)


def test_end_by_the_engine_stands() -> None:
    stream = new_stream()
    stream.add_output(output("a", 1, reason=FinishReason.STOP))

    stream.end(TokenOutput(request_id="r", finish_reason=FinishReason.ERROR))

    assert stream.terminal is not None
    assert stream.terminal.finish_reason is FinishReason.STOP


def test_an_end_without_the_engine_is_one() -> None:
    stream = new_stream()
    before = stream.is_over

    stream.end(TokenOutput(request_id="r", finish_reason=FinishReason.ERROR))

    assert (before, stream.is_over) == (False, True)


def test_the_first_token_comes_once() -> None:
    stream = new_stream()
    stream.add_output(output(""))
    before = stream.first_token_at
    stream.add_output(output("a", 1))
    first = stream.first_token_at
    stream.add_output(output("b", 2))

    assert before is None
    assert first is not None
    assert stream.first_token_at == first


def test_nul_is_replaced_wherever_text_goes() -> None:
    """Postgres stores NUL in no text and no JSON; a checkpoint with one would fail for all jobs."""
    stream = new_stream()

    stream.add_output(output("a\0b", 1))

    text = "a\N{REPLACEMENT CHARACTER}b"
    assert stream.choices[0].text == stream.checkpoint().text == text
    assert texts_of(decompress_event_log(stream.event_log())) == [text]


def test_what_no_event_can_say_is_in_no_checkpoint() -> None:
    stream = new_stream()
    stream.add_output(output("a", 1))

    with pytest.raises(TypeError):
        stream.add_output(output("\ud83d", 2))

    assert (stream.checkpoint().seq, stream.checkpoint().text, stream.num_tokens) == (1, "a", 1)


def test_checkpoint_is_due_only_with_something_new() -> None:
    stream = new_stream()
    stream.add_output(output("a", 1))

    due = stream.due_checkpoint()
    stream.note_checkpoint(1)
    again = stream.due_checkpoint()
    stream.add_output(output("b", 2))
    stream.fence()

    assert due is not None
    assert (due.checkpoint.seq, due.checkpoint.text, due.output_tokens) == (1, "a", 1)
    assert unpack_token_ids(due.checkpoint.token_ids) == [1]
    assert again is None
    assert stream.due_checkpoint() is None


def test_fenced_attempt_wakes_its_handler() -> None:
    for code in (Code.FENCED, Code.FINAL):
        stream = new_stream()

        stream.confirm(Reply(code, 7))

        assert stream.is_fenced
        assert stream.finished.is_set()


def three(**fields: Any) -> JobStream:
    return new_stream(num_choices=3, **fields)


def stop(index: int, **fields: Any) -> TokenOutput:
    return output("", 0, index=index, reason=FinishReason.STOP, **fields)


def test_job_is_over_when_all_choices_have_ended() -> None:
    stream = three()

    stream.add_output(stop(1))
    stream.add_output(stop(0))
    before = (stream.is_over, stream.is_generating, stream.terminal)
    stream.add_output(stop(2))

    assert before == (False, True, None)
    assert (stream.is_over, stream.is_generating) == (True, False)
    assert stream.terminal is not None


def test_choices_go_on_while_another_has_ended() -> None:
    stream = three()
    stream.add_output(output("a", 1, index=0, reason=FinishReason.LENGTH))

    stream.add_output(output("late", 2, index=0))
    stream.add_output(output("b", 3, index=2))

    assert [choice.text for choice in stream.choices] == ["a", "", "b"]
    assert (stream.num_tokens, stream.attempt_tokens) == (2, 2)
    assert [choice.finish_reason for choice in stream.choices] == ["length", None, None]


@pytest.mark.parametrize("reason", [FinishReason.ERROR, FinishReason.ABORT])
def test_failure_or_abort_of_one_choice_ends_the_job(reason: FinishReason) -> None:
    stream = three()
    stream.add_output(stop(0))

    stream.add_output(output("", index=1, reason=reason))

    assert (stream.is_over, stream.is_generating) == (True, True)
    assert stream.terminal is not None
    assert stream.terminal.finish_reason is reason


@pytest.mark.parametrize(
    ("reasons", "gravest"),
    [
        (("stop", "stop", "stop"), "stop"),
        (("stop", "length", "stop"), "length"),
        (("deadline", "length", "stop"), "deadline"),
        (("abort", "deadline", "abort"), "abort"),
        (("stop", "abort", "error"), "error"),
    ],
)
def test_job_ends_as_its_gravest_choice(reasons: tuple[str, ...], gravest: str) -> None:
    stream = three()

    for index, reason in enumerate(reasons):
        stream.add_output(output("", index=index, reason=FinishReason(reason)))

    assert stream.terminal is not None
    assert stream.terminal.finish_reason == gravest


def test_cached_tokens_are_those_of_the_choice_that_computed_the_prompt() -> None:
    """The others find in the cache what it has just put there; input is billed once."""
    stream = three()
    stream.add_output(stop(1, cached_tokens=64))
    before = stream.cached_tokens

    for index, cached_tokens in ((0, 16), (2, 64)):
        stream.add_output(stop(index, cached_tokens=cached_tokens))

    assert (before, stream.cached_tokens) == (0, 16)


def test_nothing_is_added_once_the_output_is_closed() -> None:
    stream = three()
    stream.add_output(output("", index=1, reason=FinishReason.ERROR))
    stream.close()
    number = stream.marker_seq()

    stream.add_output(output("late", 2, index=0))

    assert stream.finished.is_set()
    assert (stream.choices[0].text, stream.marker_seq()) == ("", number)


def test_text_held_back_by_an_abort_comes_out_only_if_the_job_ends_with_it() -> None:
    """The next attempt replays the tokens and comes to the same text by itself."""
    stream = new_stream()
    stream.add_output(output("a", 1))
    stream.add_output(output(" hal", reason=FinishReason.ABORT))
    stream.close()
    given_back = stream.checkpoint()

    stream.add_held_back()

    assert (given_back.seq, given_back.text) == (1, "a")
    assert texts_of(decompress_event_log(stream.event_log())) == ["a hal"]
    assert stream.choices[0].text == "a hal"


def test_checkpoint_of_several_choices_is_read_back() -> None:
    stream = three()
    for index, text in ((0, "é🦊"), (2, "c"), (2, "d")):
        stream.add_output(output(text, 10 + index, index=index))
    stream.add_output(stop(2))

    checkpoint = stream.checkpoint()
    restored = from_checkpoint(checkpoint, 3)

    assert checkpoint.text == "é🦊cd"
    assert checkpoint.splits == ((1, 2, None), (0, 0, None), (3, 2, "stop"))
    assert [choice.text for choice in restored] == ["é🦊", "", "cd"]
    assert [choice.token_ids for choice in restored] == [[10], [], [12, 12, 0]]


def test_checkpoint_of_two_choices_keeps_them_apart() -> None:
    stream = new_stream(num_choices=2)
    stream.add_output(output("a", 1, index=0))
    stream.add_output(output("b", 2, index=1))

    restored = from_checkpoint(stream.checkpoint(), 2)

    assert [(choice.text, choice.token_ids) for choice in restored] == [("a", [1]), ("b", [2])]


def test_checkpoint_of_one_choice_needs_no_splits() -> None:
    stream = new_stream()
    stream.add_output(output("ab", 1, 2))

    assert stream.checkpoint().splits is None


def test_empty_checkpoint_leaves_all_choices_at_their_start() -> None:
    choices = from_checkpoint(Checkpoint(), 2)

    assert [(choice.index, choice.token_ids, choice.text) for choice in choices] == [
        (0, [], ""),
        (1, [], ""),
    ]


def test_events_hold_logprobs_where_they_are_asked_for() -> None:
    asking, silent = new_stream(sampling={"logprobs": 2}), new_stream(sampling={"logprobs": None})
    scored = TokenLogprobs(5, -0.5, ((5, -0.5), (6, -1.5)))

    for stream in (asking, silent):
        stream.add_output(output("a", 5, logprobs=(scored,)))
        stream.add_output(output("b", reason=FinishReason.STOP))

    fields = [event.fields() for event in decompress_event_log(asking.event_log())]
    assert fields[0] == {
        "index": 0,
        "text": "a",
        "token_ids": [5],
        "logprobs": [[-0.5, [[5, -0.5], [6, -1.5]]]],
    }
    assert fields[1]["logprobs"] == []
    assert "logprobs" not in decompress_event_log(silent.event_log())[0].fields()
