"""The supervisor with tiny processes in place of real ones."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from cli.stack.child import STATE_VARIABLE, Child, spawn, start_moment
from cli.stack.daemon import _say
from cli.stack.logs import MAX_LOG_BYTES
from cli.stack.options import Step
from cli.stack.state import ProcessRecord, Running, StateFolder
from cli.stack.supervisor import Backoff, Supervisor, Unit, end_leftovers

SLEEPER = "import time; time.sleep(600)"
# Prints the pid of a child that outlives it.
PARENT = (
    "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time;"
    " time.sleep(600)']); print(child.pid, flush=True); time.sleep(600)"
)
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    " print('ready', flush=True); time.sleep(600)"
)


def wait_until(is_true: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.01)


def start(state: StateFolder, code: str, name: str = "process") -> Child:
    return spawn(
        [sys.executable, "-c", code],
        env={**os.environ, STATE_VARIABLE: str(state.path)},
        log_path=state.logs / f"{name}.log",
        cwd=state.path,
        death_signal=signal.SIGKILL,
    )


def unit(state: StateFolder, code: str = SLEEPER, name: str = "process", order: int = 0) -> Unit:
    return Unit(
        name=name,
        start=lambda: start(state, code, name),
        log_path=state.logs / f"{name}.log",
        stop_order=order,
        grace_s=5.0,
    )


def recorded_pids(state: StateFolder) -> list[int]:
    running = state.read_running()
    return [record.pid for record in running.processes] if running else []


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "state")
    folder.create()
    return folder


def test_backoff_doubles_to_a_limit_and_forgets_after_a_healthy_minute() -> None:
    backoff = Backoff()

    delays = [backoff.after(uptime_s=1.0) for _ in range(8)]
    after_health = backoff.after(uptime_s=61.0)

    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert after_health == 0.5


def test_dead_process_is_started_again_and_its_death_told(state: StateFolder) -> None:
    supervisor = Supervisor(state)
    deaths: list[int] = []
    watched = unit(state)
    watched.on_death = lambda child: deaths.append(child.pid)
    first = supervisor.add(watched)
    supervisor.watch()
    try:
        first.kill()
        wait_until(lambda: watched.num_restarts == 1)

        assert deaths == [first.pid]
        assert watched.child is not None
        assert watched.child.is_alive
        wait_until(lambda: recorded_pids(state) == [getattr(watched.child, "pid", None)])
    finally:
        supervisor.stop()


def test_process_that_dies_at_once_is_started_ever_more_slowly(state: StateFolder) -> None:
    supervisor = Supervisor(state)
    broken = unit(state, "raise SystemExit(3)")
    supervisor.add(broken)
    supervisor.watch()
    try:
        wait_until(lambda: broken.num_restarts == 2)

        assert broken.backoff.next_s >= 2.0
    finally:
        supervisor.stop()


def test_failing_on_death_does_not_stop_the_watch(state: StateFolder) -> None:
    supervisor = Supervisor(state)
    watched = unit(state)

    def fail(child: Child) -> None:
        raise RuntimeError("Postgres is away")

    watched.on_death = fail
    first = supervisor.add(watched)
    supervisor.watch()
    try:
        first.kill()

        wait_until(lambda: watched.num_restarts == 1)
    finally:
        supervisor.stop()


def test_stop_ends_units_in_their_order(state: StateFolder) -> None:
    supervisor = Supervisor(state)
    ended: list[str] = []

    class Recorded(Child):
        def send(self, number: int) -> None:
            ended.append(self.name)
            super().send(number)

        name = ""

    def recorded(name: str) -> Child:
        child = start(state, SLEEPER, name)
        child.__class__ = Recorded
        child.name = name  # type: ignore[attr-defined]
        return child

    for name, order in (("service", 2), ("worker", 1), ("api", 0)):
        added = unit(state, name=name, order=order)
        added.start = lambda name=name: recorded(name)  # type: ignore[misc]
        supervisor.add(added)

    supervisor.stop()

    assert ended == ["api", "worker", "service"]


def test_process_that_ignores_sigterm_is_killed_after_its_grace(state: StateFolder) -> None:
    supervisor = Supervisor(state)
    stubborn = unit(state, STUBBORN)
    stubborn.grace_s = 0.3
    child = supervisor.add(stubborn)
    wait_until(lambda: "ready" in stubborn.log_path.read_text())

    supervisor.stop()

    assert not child.is_alive


def test_stop_leaves_other_processes_alone(state: StateFolder) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", SLEEPER])
    supervisor = Supervisor(state)
    supervisor.add(unit(state))
    try:
        supervisor.stop()

        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_children_of_a_killed_process_end_with_it(state: StateFolder) -> None:
    parent = start(state, PARENT, "parent")
    log_path = state.logs / "parent.log"
    wait_until(lambda: log_path.read_text().strip())
    grandchild = int(log_path.read_text())

    parent.kill()

    wait_until(lambda: start_moment(grandchild) is None)


def test_leftovers_of_a_killed_supervisor_are_ended(state: StateFolder) -> None:
    left = start(state, SLEEPER)
    record = ProcessRecord("inference", left.pid, left.started, 0.0)
    running = Running(str(state.path), record, [record])

    ended = end_leftovers(running, keep=())

    assert [record.name for record in ended] == ["inference"]
    assert not left.is_alive


def test_stale_record_with_a_reused_pid_ends_nobody(state: StateFolder) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True)
    try:
        record = ProcessRecord("inference", stranger.pid, "another boot:1", 0.0)

        ended = end_leftovers(Running(str(state.path), record, [record]), keep=())

        assert ended == []
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_record_of_another_folder_is_ignored(state: StateFolder) -> None:
    record = ProcessRecord("supervisor", os.getpid(), start_moment(os.getpid()) or "", 0.0)
    state.write_running(Running("/somewhere/else", record))

    assert state.read_running() is None


def test_only_one_holds_the_lock(state: StateFolder) -> None:
    with state.lock() as first, state.lock() as second:
        assert (first, second) == (True, False)

    with state.lock() as third:
        assert third


def test_child_ends_when_its_parent_is_killed(state: StateFolder) -> None:
    code = f"""
import os, signal, sys, time
from pathlib import Path
from cli.stack.child import spawn
child = spawn([sys.executable, "-c", {SLEEPER!r}], env=os.environ, cwd=Path("."),
    log_path=Path({str(state.logs / "child.log")!r}), death_signal=signal.SIGTERM)
print(child.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    # The launcher becomes the sleeper; only then the death signal is surely set.
    wait_until(lambda: b"launch.py" not in Path(f"/proc/{pid}/cmdline").read_bytes())

    parent.kill()
    parent.communicate()

    wait_until(lambda: start_moment(pid) is None)


CHATTERER = """
import itertools, time
for number in itertools.count():
    print(number, flush=True)
    time.sleep(0.0001)
"""


def numbers(log: Path) -> list[int]:
    """Of the whole lines of a log; the last may be half."""
    return [int(line) for line in log.read_bytes().split(b"\n")[:-1]]


def test_log_of_a_process_that_goes_on_talking_stays_small(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state", max_log_bytes=10_000)
    state.create()
    talks = unit(state, CHATTERER)
    log, kept = talks.log_path, state.logs / "process.log.1"
    supervisor = Supervisor(state)
    supervisor.add(talks)
    supervisor.watch()
    try:
        wait_until(lambda: kept.exists() and numbers(kept))
        last = numbers(kept)[-1]
        wait_until(lambda: any(number > last for number in numbers(log)))
        wait_until(lambda: any(number > last for number in numbers(kept)))  # once more
    finally:
        supervisor.stop()

    assert all(earlier < later for earlier, later in pairwise(numbers(kept) + numbers(log)))


def test_log_that_can_not_be_copied_is_bounded_all_the_same(state: StateFolder) -> None:
    (state.logs / "api.log.1").mkdir()
    for name in ("api", "billing"):
        with (state.logs / f"{name}.log").open("wb") as file:
            file.truncate(MAX_LOG_BYTES + 1)

    with pytest.raises(OSError):
        state.bound_logs()

    assert [(state.logs / f"{name}.log").stat().st_size for name in ("api", "billing")] == [0, 0]
    assert (state.logs / "billing.log.1").stat().st_size == MAX_LOG_BYTES + 1


def test_state_that_can_not_be_written_does_not_stop_the_watch(state: StateFolder) -> None:
    supervisor = Supervisor(state)
    watched = unit(state)
    first = supervisor.add(watched)
    supervisor.watch()
    record = state.path / "running.json"
    try:
        record.unlink()
        record.mkdir()  # nothing takes its place

        first.kill()
        wait_until(lambda: watched.num_restarts == 1)
        assert watched.child is not None
        watched.child.kill()
        wait_until(lambda: watched.num_restarts == 2)
        record.rmdir()

        pid = watched.child.pid
        wait_until(lambda: record.is_file() and recorded_pids(state) == [pid])
    finally:
        supervisor.stop()


def test_record_for_which_there_is_no_room_is_not_tried_at_every_turn(
    state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = Supervisor(state)
    watched = unit(state)
    tries: list[Running] = []
    first = supervisor.add(watched)

    def fail(_: StateFolder, running: Running) -> None:
        tries.append(running)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StateFolder, "write_running", fail)
    monkeypatch.setattr("cli.stack.supervisor._FILES_S", 3600.0)
    supervisor.watch()
    try:
        first.kill()
        wait_until(lambda: tries)
        assert watched.child is not None
        watched.child.kill()
        wait_until(lambda: watched.num_restarts == 2)  # a second later, ten turns
        wait_until(lambda: len(tries) > 1)
    finally:
        supervisor.stop()
    assert len(tries) == 2  # once a change, and then after an hour


@pytest.mark.parametrize("error", [RuntimeError("no"), OSError(errno.ENOMEM, "no")])
def test_start_that_fails_by_whatever_is_tried_ever_more_slowly(
    state: StateFolder, error: Exception
) -> None:
    supervisor = Supervisor(state)
    watched = unit(state)
    first = supervisor.add(watched)
    begin, tries = watched.start, []

    def fail_twice() -> Child:
        tries.append(watched.backoff.next_s)
        if len(tries) <= 2:
            raise error
        return begin()

    watched.start = fail_twice
    supervisor.watch()
    try:
        first.kill()
        wait_until(lambda: watched.num_restarts == 1)
    finally:
        supervisor.stop()
    assert tries == [1.0, 2.0, 4.0]


class _FullLog(io.StringIO):
    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_daemon_whose_log_has_no_room_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    log = _FullLog()
    monkeypatch.setattr(sys, "stdout", log)

    _say(Step.NOTE, "billing died")

    assert "billing died" in log.getvalue()
