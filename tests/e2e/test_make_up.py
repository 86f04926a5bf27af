"""`make up` and `make down` as a newcomer runs them, on the real models. Slow: minutes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from cli.stack.files import ROOT
from cli.stack.state import StateFolder

pytestmark = pytest.mark.slow
STAMP = ".venv/.installed"  # -o: the environment that runs the tests is taken as it is


class Installation:
    """The make targets with a state folder of their own."""

    def __init__(self, state_dir: Path) -> None:
        self.state = StateFolder(state_dir)
        kept = {name: value for name, value in os.environ.items() if "MILLRACE_" not in name}
        self._environment = {**kept, "MILLRACE_STATE_DIR": str(state_dir), "NO_COLOR": "1"}

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        python = Path(sys.executable)
        is_own = python.is_relative_to(ROOT / ".venv")
        return self.run("make", "-o", STAMP, *([] if is_own else [f"PY={python}"]), *arguments)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def client(self) -> httpx.Client:
        """With the address and key of `.millrace/env`."""
        lines = self.state.env_path.read_text().splitlines()
        env = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        return httpx.Client(
            base_url=env["MILLRACE_URL"],
            headers={"Authorization": f"Bearer {env['MILLRACE_API_KEY']}"},
            timeout=60,
            trust_env=False,
        )

    def processes(self) -> list[psutil.Process]:
        """All that runs for this state folder, found without our own records."""
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get("MILLRACE_STATE_DIR") == str(self.state.path)
                data = str(self.state.path)
                if is_ours or process.cwd().startswith(data):
                    found.append(process)
            except psutil.Error:
                continue
        return found


@contextmanager
def installation(name: str) -> Iterator[Installation]:
    parent = Path(tempfile.mkdtemp(prefix="millrace-up-"))
    made = Installation(parent / name)
    try:
        yield made
    finally:
        made.make("purge")
        shutil.rmtree(parent, ignore_errors=True)


def printed_commands(output: str) -> str:
    """The lines to try, as `make up` prints them."""
    return output.partition("Try:\n")[2].split("\n\n")[0]


def test_up_answers_a_prompt_and_its_printed_commands_work() -> None:
    with installation("a state folder") as made:
        up = made.make("up", "DETACH=1")

        assert up.returncode == 0, up.stdout + up.stderr
        assert ": completed" in up.stdout
        assert "ledger: entry" in up.stdout
        tried = made.run("bash", "-euc", printed_commands(up.stdout))
        assert tried.returncode == 0, tried.stderr
        assert "event: token" in tried.stdout
        assert "event: done" in tried.stdout

        again = made.make("up", "DETACH=1")
        assert again.returncode == 0
        assert "already running" in again.stdout

        status = json.loads(made.run(sys.executable, "-m", "cli.main", "status", "--json").stdout)
        assert status["is_ready"]
        assert status["workers"][0]["models"]

        down = made.make("down")
        assert down.returncode == 0, down.stdout + down.stderr
        assert made.processes() == []


def test_up_after_kill_of_everything_has_the_same_key_and_data() -> None:
    with installation("state") as made:
        first = made.make("up", "DETACH=1")
        assert first.returncode == 0, first.stdout + first.stderr
        env = made.state.env_path.read_text()
        with made.client() as client:
            jobs = [job["id"] for job in client.get("/v1/jobs").json()["data"]]
        for process in made.processes():
            process.send_signal(signal.SIGKILL)

        second = made.make("up", "DETACH=1")

        assert second.returncode == 0, second.stdout + second.stderr
        assert made.state.env_path.read_text() == env
        with made.client() as client:
            kept = [job["id"] for job in client.get("/v1/jobs").json()["data"]]
        assert jobs
        assert set(jobs) < set(kept)


def test_killed_supervisor_takes_its_processes_with_it() -> None:
    with installation("state") as made:
        up = made.make("up", "DETACH=1")
        assert up.returncode == 0, up.stdout + up.stderr
        running = made.state.read_running()
        assert running is not None

        os.kill(running.supervisor.pid, signal.SIGKILL)
        down = made.make("down")

        assert down.returncode == 0, down.stdout + down.stderr
        assert made.processes() == []
