"""One attempt's events: what is given to Redis, what is stored, and what comes too late."""

from __future__ import annotations

from store.attempts import Checkpoint, Claimed
from tasks.events import Event, EventType, decompress_event_log, make_event, text_of
from tasks.ids import uuid7
from tasks.stream import Code, Reply
from tasks.token_ids import unpack_token_ids
from tests.support.jobs import PRICES
from workers.inference.engine.errors import EngineError
from workers.inference.engine.protocol import FinishReason, TokenOutput
from workers.inference.job_stream import JobStream


def new_stream(*history: Event, token_ids: tuple[int, ...] = (), text: str = "") -> JobStream:
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
        sampling={},
        checkpoint=Checkpoint(),
    )
    return JobStream(claimed, history=history, token_ids=token_ids, text=text)


def output(text: str, *ids: int, reason: FinishReason | None = None) -> TokenOutput:
    return TokenOutput(request_id="r", token_ids=ids, text=text, finish_reason=reason)


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
    gap = make_event(2_000_000, EventType.GAP, **{"from": 1, "to": 2_000_000, "text": "ab"})
    stream = new_stream(gap, token_ids=(1, 2), text="ab")
    stream.must_reset_log()

    stream.add_output(output("c", 3))
    before = pending_numbers(stream)
    stream.confirm(Reply(Code.OK, 2_000_001))
    stream.add_output(output("d", 4))

    assert before == [2_000_000, 2_000_001]
    assert pending_numbers(stream) == [2_000_002]
    assert (stream.text, stream.token_ids, stream.attempt_tokens) == ("abcd", [1, 2, 3, 4], 2)


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
    assert (stream.text, stream.marker_seq()) == ("a", number)


def test_end_by_the_engine_stands() -> None:
    stream = new_stream()
    stream.add_output(output("a", 1, reason=FinishReason.STOP))

    stream.end(TokenOutput(request_id="r", finish_reason=FinishReason.ERROR))

    assert stream.terminal is not None
    assert stream.terminal.finish_reason is FinishReason.STOP


def test_nul_is_replaced_wherever_text_goes() -> None:
    """Postgres stores NUL in no text and no JSON; a checkpoint with one would fail for all jobs."""
    stream = new_stream()

    stream.add_output(output("a\0b", 1))

    assert stream.text == stream.checkpoint().text == "a\N{REPLACEMENT CHARACTER}b"
    assert text_of(decompress_event_log(stream.event_log())) == stream.text


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
