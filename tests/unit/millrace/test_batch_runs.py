"""The steps of a batch run, performed by hand: where it is interrupted, and what it does then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from millrace import (
    APIConnectionError,
    Batch,
    MillraceError,
    NotFoundError,
    Page,
    RangeNotSatisfiableError,
)
from millrace import batch_runs as module
from millrace.batch_files import ResultsFile
from millrace.batch_runs import BatchRun
from millrace.calls import Call
from millrace.steps import Fetch, Pause, Step
from millrace.types import parse_batch, parse_file

FILE = parse_file(
    {"id": "file-1", "bytes": 3, "created_at": 1, "filename": "a", "purpose": "batch",
     "status": "processed"}
)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text('{"custom_id":"a"}\n')
    return path


def _run(path: Path, **options: Any) -> BatchRun:
    return BatchRun.of(
        path,
        output=None,
        errors=None,
        **{"endpoint": "/v1/chat/completions", "completion_window": "24h", **options},
    )


def _batch(status: str = "in_progress", completed: int = 0, **more: Any) -> Batch:
    return parse_batch(
        {"id": "batch_1", "status": status, "endpoint": "e", "input_file_id": "file-1",
         "created_at": 1, "request_counts": {"total": 2, "completed": completed, "failed": 0},
         "output_file_id": "file-2"} | more
    )  # fmt: skip


def _line(custom_id: str) -> bytes:
    return json.dumps({"custom_id": custom_id}).encode() + b"\n"


def _call(step: Step) -> Call[Any]:
    assert isinstance(step, Call)
    return step


def _interrupted_at_create(path: Path) -> Call[Any]:
    steps = _run(path).steps()
    assert _call(next(steps)).path == "/v1/files"
    create = _to_create(steps)
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt)
    return create


def _to_create(steps: Any) -> Call[Any]:
    """From the upload on."""
    assert _call(steps.send(FILE)).method == "GET"
    create = _call(steps.send(Page((), None, None, False)))
    assert (create.method, create.path) == ("POST", "/v1/batches")
    return create


def test_creation_is_never_repeated_blindly(path: Path) -> None:
    assert not _interrupted_at_create(path).can_repeat


def test_batch_whose_creation_was_not_answered_is_found_by_its_input(path: Path) -> None:
    _interrupted_at_create(path)
    others = (_batch(id="batch_9", input_file_id="file-9"), _batch())

    steps = _run(path).steps()
    next(steps)
    look = _call(steps.send(Page(others, None, None, False)))

    assert (look.method, look.path) == ("GET", "/v1/batches/batch_1")


def test_creation_that_never_arrived_is_made_up_for(path: Path) -> None:
    _interrupted_at_create(path)

    steps = _run(path).steps()
    next(steps)

    assert _call(steps.send(Page((), None, None, False))).method == "POST"


def test_created_batch_is_taken_up(path: Path) -> None:
    _waiting(path).close()

    again = _call(next(_run(path).steps()))

    assert (again.method, again.path) == ("GET", "/v1/batches/batch_1")


@pytest.mark.parametrize("changed", ["input", "endpoint"])
def test_another_input_or_endpoint_is_another_run(path: Path, changed: str) -> None:
    _interrupted_at_create(path)

    if changed == "input":
        path.write_text('{"custom_id":"b"}\n')
    options = {"endpoint": "/v1/responses"} if changed == "endpoint" else {}

    assert _call(next(_run(path, **options).steps())).path == "/v1/files"


def test_unreadable_state_is_no_state(path: Path) -> None:
    _run(path).state_path.write_text('{"batch_')

    assert _call(next(_run(path).steps())).path == "/v1/files"


def test_results_of_another_run_are_not_touched(path: Path) -> None:
    output = path.with_name("in.jsonl.out.jsonl")
    output.write_bytes(_line("a"))

    with pytest.raises(MillraceError, match="another run"):
        next(_run(path).steps())

    assert output.read_bytes() == _line("a")


def test_starting_over_deletes_results_once_there_is_a_new_batch(path: Path) -> None:
    _interrupted_at_create(path)
    output = path.with_name("in.jsonl.out.jsonl")
    output.write_bytes(_line("a"))

    steps = _run(path, starts_over=True).steps()
    upload = _call(next(steps))
    _to_create(steps)

    assert upload.path == "/v1/files"
    assert output.read_bytes() == _line("a")  # the new batch may yet be refused
    steps.send(_batch())
    assert output.read_bytes() == b""


def _waiting(path: Path) -> Any:
    steps = _run(path).steps()
    next(steps)
    _to_create(steps)
    steps.send(_batch())
    return steps


def test_results_are_written_while_the_batch_runs(path: Path) -> None:
    steps = _waiting(path)

    fetch = steps.send(_batch(completed=1))
    assert isinstance(fetch, Fetch)
    assert fetch.path == "/v1/files/file-2/content"
    fetch.sink.start(0, None)
    fetch.sink.write(_line("a") + b'{"custom')
    pause = steps.send(None)

    assert isinstance(pause, Pause)
    assert path.with_name("in.jsonl.out.jsonl").read_bytes() == _line("a")


def test_results_are_read_on_from_where_they_ended(path: Path) -> None:
    steps = _waiting(path)
    fetch = steps.send(_batch(completed=1))
    assert "Range" not in fetch.headers()
    fetch.sink.start(0, None)
    fetch.sink.write(_line("a") + _line("b")[:5])
    steps.send(None)
    steps.send(None)

    fetch = steps.send(_batch(completed=2))
    assert fetch.headers()["Range"] == f"bytes={len(_line('a')) + 5}-"
    fetch.sink.start(len(_line("a")) + 5, None)
    fetch.sink.write(_line("b")[5:])
    steps.send(None)

    assert path.with_name("in.jsonl.out.jsonl").read_bytes() == _line("a") + _line("b")


def test_file_without_anything_new_is_no_error(path: Path) -> None:
    steps = _waiting(path)
    steps.send(_batch(completed=1))

    pause = steps.throw(RangeNotSatisfiableError("nothing there", status=416))

    assert isinstance(pause, Pause)


def test_nothing_is_read_while_nothing_is_new(path: Path) -> None:
    steps = _waiting(path)
    steps.send(_batch(completed=1))
    first = steps.send(None)
    steps.send(None)

    second = steps.send(_batch(completed=1))

    assert isinstance(second, Pause)
    assert second.seconds > first.seconds


def test_wait_goes_on_through_a_server_that_restarts(path: Path) -> None:
    steps = _waiting(path)

    assert isinstance(steps.throw(APIConnectionError("refused")), Pause)
    assert _call(steps.send(None)).path == "/v1/batches/batch_1"
    steps.send(_batch("completed", 2))
    with pytest.raises(StopIteration) as ended:
        steps.send(None)

    assert ended.value.value.status == "completed"


def test_wait_for_a_server_that_is_gone_ends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", -1.0)
    steps = _waiting(path)

    with pytest.raises(APIConnectionError):
        steps.throw(APIConnectionError("refused"))


def test_refusal_while_waiting_is_raised_at_once(path: Path) -> None:
    steps = _waiting(path)

    with pytest.raises(NotFoundError):
        steps.throw(NotFoundError("gone", status=404))


def test_batch_refused_as_a_whole_is_forgotten(path: Path) -> None:
    steps = _waiting(path)

    with pytest.raises(StopIteration):
        steps.send(_batch("failed", output_file_id=None))

    assert _call(next(_run(path).steps())).path == "/v1/files"


def test_each_custom_id_is_written_once_over_rereads_and_reopening(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for _ in range(2):
        results = ResultsFile(path)
        for length in (20, 35, 1000):
            results.start(0, None)
            results.write((_line("a") + _line("b") + _line("c"))[:length])
        results.finish()
        results.close()

    assert path.read_bytes() == _line("a") + _line("b") + _line("c")
    assert results.num_lines == 3


def test_line_an_earlier_run_was_interrupted_in_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(_line("a") + _line("b")[:5])

    results = ResultsFile(path)
    results.write(_line("a") + _line("b"))
    results.close()

    assert path.read_bytes() == _line("a") + _line("b")


def test_last_line_needs_no_newline(tmp_path: Path) -> None:
    results = ResultsFile(tmp_path / "out")

    results.write(_line("a").rstrip(b"\n"))
    results.finish()
    results.close()

    assert (tmp_path / "out").read_bytes() == _line("a")
