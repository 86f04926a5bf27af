"""`millrace down`: ask the supervisor to drain and end; finish the work of one that was killed."""

from __future__ import annotations

import shutil
import signal

from cli.stack.errors import StackError
from cli.stack.options import Report, Step
from cli.stack.postgres import EmbeddedPostgres
from cli.stack.postgres_home import remove_outside_home
from cli.stack.redis import EmbeddedRedis
from cli.stack.state import StateFolder
from cli.stack.supervisor import SERVICES, end_leftovers
from workers.inference.settings import WorkerSettings

# Beside the workers' grace: that of the API before them and of the services after them.
_OTHERS_GRACE_S = 65.0


def down(state: StateFolder, report: Report, *, purge: bool = False) -> None:
    """Idempotent. Ends nothing that this state folder's `up` did not start.

    purge: delete the state folder and what Postgres keeps for it elsewhere.
    """
    _end_all(state, report)
    if purge and state.path.exists():
        remove_outside_home(state.path)
        shutil.rmtree(state.path)
        report(Step.DONE, f"deleted {state.path}")


def _end_all(state: StateFolder, report: Report) -> None:
    running = state.read_running()
    supervisor = running.supervisor.find() if running else None
    if supervisor is not None:
        report(Step.BEGIN, "stopping: running jobs finish or go back to the queue")
        supervisor.send(signal.SIGTERM)
        if not supervisor.wait(WorkerSettings().stop_grace_s + _OTHERS_GRACE_S):
            raise StackError(
                f"the supervisor (pid {supervisor.pid}) does not end: kill it, run again"
            )
        report(Step.DONE, "stopped; state and data stay in .millrace")
        return
    if not state.path.exists():
        report(Step.NOTE, "Millrace was not running")
        return
    with state.lock() as is_free:
        if not is_free:
            raise StackError(
                "`millrace up` is just starting: try again when it is up, or Ctrl-C it"
            )
        _end_orphans(state, report)


def _end_orphans(state: StateFolder, report: Report) -> None:
    """What a supervisor that was killed left running: its children, then the services."""
    running = state.read_running()
    names = [record.name for record in end_leftovers(running, keep=SERVICES)] if running else []
    for name, service in (
        ("redis", EmbeddedRedis(state.path)),
        ("postgres", EmbeddedPostgres(state.path)),
    ):
        if service.find() is not None:
            service.stop()
            names.append(name)
    state.clear_running()
    report(Step.NOTE, f"ended {', '.join(names)}" if names else "Millrace was not running")
