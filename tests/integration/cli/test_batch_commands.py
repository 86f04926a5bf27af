"""`millrace batch` and the client below it against a server of ours, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace import AsyncClient, BatchProgress, Client, ServerError
from tests.integration.cli.conftest import Run, assert_one_line_error, command_environment
from tests.support.batch_server import BatchServer, requests_jsonl, serving
from tests.support.waiting import wait_until

CUSTOM_IDS = [f"fail-{n}" if n % 10 == 9 else f"line-{n}" for n in range(40)]
OUTPUT_IDS = sorted(name for name in CUSTOM_IDS if "fail" not in name)
ERROR_IDS = sorted(name for name in CUSTOM_IDS if "fail" in name)

# As from a terminal, also where the tests themselves run with SIGINT ignored.
_INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from cli.main import run; run()"
)


@pytest.fixture
def server() -> BatchServer:
    return BatchServer()


@pytest.fixture
def environment(server: BatchServer) -> Iterator[dict[str, str]]:
    with serving(server) as url:
        yield {"MILLRACE_URL": url, "MILLRACE_API_KEY": "key"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text(requests_jsonl(*CUSTOM_IDS))
    return path


def _written(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


def _results(path: Path) -> tuple[list[str], list[str]]:
    """Sorted: repeated ones would show."""
    names = (f"{path.name}.out.jsonl", f"{path.name}.err.jsonl")
    output, errors = (sorted(_written(path.with_name(name))) for name in names)
    return output, errors


def test_run_writes_results_and_says_what_failed(
    millrace: Run, environment: dict[str, str], server: BatchServer, path: Path
) -> None:
    result = millrace("batch", "run", str(path), **environment)

    assert_one_line_error(result, "4 requests failed", "in.jsonl.err.jsonl")
    assert "completed: 36 of 40" in result.stdout
    assert _results(path) == (OUTPUT_IDS, ERROR_IDS)
    assert server.uploads == [path.read_bytes()]


def test_get_says_what_a_batch_waits_for(
    millrace: Run, environment: dict[str, str], server: BatchServer, path: Path
) -> None:
    millrace("batch", "run", str(path), **environment)
    going_on = millrace("batch", "get", "batch_1", **environment)
    server.waits_for = {"code": "insufficient_quota", "message": "You have no credit left."}

    waiting = millrace("batch", "get", "batch_1", **environment)
    listed = millrace("batch", "list", **environment)

    assert "batch_1 waits: You have no credit left." in listed.stdout.splitlines()
    assert "waits" not in going_on.stdout
    assert "waits: You have no credit left." in waiting.stdout.splitlines()


def test_run_says_once_what_it_waits_for(
    millrace: Run, environment: dict[str, str], server: BatchServer, path: Path
) -> None:
    server.waits_for = {"code": "insufficient_quota", "message": "You have no credit left."}
    server.num_absences = 2

    result = millrace("batch", "run", str(path), **environment)

    said, *_ = result.stderr.splitlines()
    assert said == "millrace: batch_1 waits: You have no credit left."
    assert result.stderr.count("waits") == 1


def test_interrupted_run_is_taken_up_and_writes_each_result_once(
    millrace: Run, environment: dict[str, str], server: BatchServer, path: Path, tmp_path: Path
) -> None:
    server.num_allowed = 25
    output = path.with_name("in.jsonl.out.jsonl")
    process = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTIBLE, "batch", "run", str(path)],
        env=command_environment(tmp_path / "state", **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: output.exists() and len(_written(output)) > 15, what="first results")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    server.num_allowed = 1000

    again = millrace("batch", "run", str(path), **environment)

    assert process.returncode == 130
    (line,) = stderr.strip().splitlines()
    assert line.startswith("millrace: batch_1 goes on")
    assert "completed" in again.stdout
    assert _results(path) == (OUTPUT_IDS, ERROR_IDS)
    assert (len(server.uploads), len(server.batches)) == (1, 1)


def test_finished_run_is_not_paid_for_twice(
    millrace: Run, environment: dict[str, str], server: BatchServer, path: Path
) -> None:
    path.write_text(requests_jsonl("a", "b"))

    results = [millrace("batch", "run", str(path), "--json", **environment) for _ in range(2)]
    anew = millrace("batch", "run", str(path), "--new", "--json", **environment)

    ids = [json.loads(result.stdout)["id"] for result in (*results, anew)]
    assert ids == ["batch_1", "batch_1", "batch_2"]
    assert _results(path) == (["a", "b"], [])


def test_results_of_another_input_are_kept(
    millrace: Run, environment: dict[str, str], path: Path
) -> None:
    path.write_text(requests_jsonl("a"))
    millrace("batch", "run", str(path), **environment)

    path.write_text(requests_jsonl("b"))
    result = millrace("batch", "run", str(path), **environment)

    assert_one_line_error(result, "another run")
    assert _results(path) == (["a"], [])


def test_refused_batch_says_the_line(
    millrace: Run, environment: dict[str, str], server: BatchServer, path: Path
) -> None:
    server.is_refusing = True

    result = millrace("batch", "run", str(path), **environment)

    assert_one_line_error(result, "no JSON", "line 3")


def test_batch_whose_creation_was_not_answered_is_not_made_twice(
    millrace: Run, environment: dict[str, str], server: BatchServer, path: Path
) -> None:
    path.write_text(requests_jsonl("a"))
    server.is_losing_creations = True
    lost = millrace("batch", "run", str(path), **environment)
    server.is_losing_creations = False

    again = millrace("batch", "run", str(path), **environment)

    assert_one_line_error(lost, "502")
    assert again.returncode == 0, again.stderr
    assert list(server.batches) == ["batch_1"]


async def test_batch_whose_creation_was_not_answered_is_found_behind_a_page_of_others(
    environment: dict[str, str], server: BatchServer, path: Path
) -> None:
    path.write_text(requests_jsonl("a"))
    server.is_losing_creations = True
    async with AsyncClient(environment["MILLRACE_URL"], "key", max_retries=0) as client:
        with pytest.raises(ServerError):
            await client.batches.run(path)
        server.is_losing_creations = False
        server.batches |= {f"batch_{n}": "file-of-others" for n in range(2, 150)}

        batch = await client.batches.run(path)

    assert batch.id == "batch_1"


def test_missing_input_is_one_line(millrace: Run, environment: dict[str, str]) -> None:
    assert_one_line_error(millrace("batch", "run", "/nowhere/in.jsonl", **environment), "in.jsonl")


def test_missing_folder_for_results_is_said_before_anything_is_sent(
    millrace: Run, environment: dict[str, str], server: BatchServer, path: Path, tmp_path: Path
) -> None:
    output = str(tmp_path / "none" / "out.jsonl")

    result = millrace("batch", "run", str(path), "--output", output, **environment)

    assert_one_line_error(result, str(tmp_path / "none"))
    assert server.uploads == []


def test_too_many_requests_is_one_line(
    millrace: Run, environment: dict[str, str], server: BatchServer
) -> None:
    server.is_limiting = True

    assert_one_line_error(millrace("batch", "list", **environment), "Too many requests.")


def test_batches_are_listed_shown_and_cancelled(
    millrace: Run, environment: dict[str, str], path: Path
) -> None:
    path.write_text(requests_jsonl("a"))
    millrace("batch", "run", str(path), **environment)

    listed = millrace("batch", "list", **environment)
    shown = millrace("batch", "get", "batch_1", **environment)
    cancelled = millrace("batch", "cancel", "batch_1", **environment)
    unknown = millrace("batch", "get", "batch_9", **environment)

    assert "batch_1" in listed.stdout
    assert "file-out" in shown.stdout
    assert cancelled.stdout.strip() == "cancelling"
    assert_one_line_error(unknown, "no such batch")


def test_run_outlives_a_server_that_is_away_for_a_while(
    environment: dict[str, str], server: BatchServer, path: Path
) -> None:
    seen: list[BatchProgress] = []
    server.num_allowed = 10

    def progress(now: BatchProgress) -> None:
        """After the first look it is away for two, and then the batch ends."""
        seen.append(now)
        if now.batch is not None:
            server.num_absences = 2
            server.num_allowed = 1000

    with Client(environment["MILLRACE_URL"], "key", max_retries=0) as client:
        batch = client.batches.run(path, progress=progress)

    assert batch.status == "completed"
    assert server.num_looks == 4
    assert _results(path) == (OUTPUT_IDS, ERROR_IDS)
    assert (seen[-1].num_results, seen[-1].num_errors) == (36, 4)


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_results_are_sent_once_where_the_server_knows_ranges(
    environment: dict[str, str], server: BatchServer, path: Path, knows_ranges: bool
) -> None:
    server.knows_ranges = knows_ranges
    server.num_allowed = 0

    def progress(now: BatchProgress) -> None:
        """Each look finds five lines more."""
        if now.batch is not None:
            server.num_allowed += 5

    with Client(environment["MILLRACE_URL"], "key") as client:
        client.batches.run(path, progress=progress)

    written = (path.with_name(f"in.jsonl.{kind}.jsonl") for kind in ("out", "err"))
    num_bytes = sum(each.stat().st_size for each in written)
    assert _results(path) == (OUTPUT_IDS, ERROR_IDS)
    assert (server.num_content_bytes == num_bytes) == knows_ranges


async def test_async_client_runs_batches_side_by_side(
    environment: dict[str, str], server: BatchServer, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{n}.jsonl" for n in range(2)]
    for path in paths:
        path.write_text(requests_jsonl("a", "b"))

    async with AsyncClient(environment["MILLRACE_URL"], "key") as client:
        batches = await asyncio.gather(*(client.batches.run(path) for path in paths))

    assert {batch.id for batch in batches} == {"batch_1", "batch_2"}
    assert sorted(server.batches.values()) == ["file-1", "file-2"]
    assert all(_results(path) == (["a", "b"], []) for path in paths)
