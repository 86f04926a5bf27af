"""Progress of `millrace batch run` and `millrace files` on a terminal, and none on a pipe."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.cli.conftest import Run, command_environment
from tests.support.batch_server import BatchServer, requests_jsonl, serving
from tests.support.terminal import CTRL_C, Terminal

NUM_LINES = 40

Start = Callable[..., Terminal]


@pytest.fixture
def server() -> BatchServer:
    return BatchServer()


@pytest.fixture
def environment(server: BatchServer) -> Iterator[dict[str, str]]:
    with serving(server) as url:
        yield {"MILLRACE_URL": url, "MILLRACE_API_KEY": "key"}


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Start:
    """Runs the command on a terminal."""

    def run(*arguments: str, pipes_output: bool = False) -> Terminal:
        return Terminal(
            [sys.executable, "-m", "cli.main", *arguments],
            env=command_environment(tmp_path / "state", **environment),
            pipes_output=pipes_output,
        )

    return run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text(requests_jsonl(*(f"line-{n}" for n in range(NUM_LINES))))
    return path


def _written(path: Path) -> list[str]:
    lines = path.with_name(f"{path.name}.out.jsonl").read_text().splitlines()
    return [json.loads(line)["custom_id"] for line in lines]


def test_terminal_shows_count_rate_and_time_left(
    start: Start, server: BatchServer, path: Path
) -> None:
    server.num_allowed = 10
    with start("batch", "run", str(path)) as terminal:
        terminal.wait_for("10/40")
        server.num_allowed = 20
        terminal.wait_for("20/40")
        terminal.wait_for("/s ")
        server.num_allowed = NUM_LINES

        assert terminal.wait() == 0

    assert re.search(r"in_progress .*20/40 +\d+\.\d/s +0:00:\d\d +0:00:\d\d", terminal.shown)
    assert "completed: 40 of 40" in terminal.shown.splitlines()[-1]
    assert len(_written(path)) == NUM_LINES


def test_json_goes_to_the_pipe_and_progress_to_the_terminal(start: Start, path: Path) -> None:
    with start("batch", "run", str(path), "--json", pipes_output=True) as terminal:
        assert terminal.wait() == 0

    assert json.loads(terminal.piped)["request_counts"]["completed"] == NUM_LINES
    assert "40/40" in terminal.shown


def test_without_a_terminal_there_is_no_progress(
    millrace: Run, environment: dict[str, str], path: Path
) -> None:
    result = millrace("batch", "run", str(path), **environment)

    assert result.returncode == 0
    assert result.stderr == ""
    assert result.stdout == "batch_1 completed: 40 of 40 completed\n"


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(
    start: Start, server: BatchServer, path: Path
) -> None:
    server.num_allowed = 10
    with start("batch", "run", str(path)) as terminal:
        terminal.wait_for("10/40")
        terminal.press(CTRL_C)

        assert terminal.wait() == 130
    server.num_allowed = NUM_LINES
    with start("batch", "run", str(path)) as again:
        assert again.wait() == 0

    last = terminal.shown.splitlines()[-1]
    assert last.startswith("millrace: batch_1 goes on")
    assert "`millrace batch cancel batch_1`" in last
    assert (len(server.uploads), len(server.batches)) == (1, 1)
    assert sorted(_written(path)) == sorted(f"line-{n}" for n in range(NUM_LINES))


def test_upload_shows_bytes_and_prints_the_id(start: Start, path: Path) -> None:
    path.write_bytes(b"x" * 2_000_000)

    with start("files", "upload", str(path)) as terminal:
        assert terminal.wait() == 0

    assert "2.0 MB/2.0 MB" in terminal.shown
    assert terminal.shown.splitlines()[-1] == "file-1"
