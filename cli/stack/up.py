"""`millrace up`: bring all up, show the first job, then stay (or leave it to a supervisor)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console

from cli.stack import asked as asked_for
from cli.stack.addresses import owner_url
from cli.stack.catalog import served_model
from cli.stack.child import tail
from cli.stack.console import Progress, standard_console
from cli.stack.demo import PROMPT, first_job, ledger_line, write_env
from cli.stack.errors import StackError
from cli.stack.files import ROOT
from cli.stack.logs import log_to
from cli.stack.options import Step, UpOptions
from cli.stack.stack import FLOWER_USER, Stack, open_state
from cli.stack.state import Running, StateFolder
from cli.stack.status import wait_until_ready
from millrace import MillraceError
from store.leases import list_live, refusals_of
from store.pools import connect


def up(asked: Mapping[str, Any], *, detach: bool, is_json: bool) -> None:
    """`asked` are the options that were given. Raises StackError with the one line that says what
    to do.
    """
    options = UpOptions(**asked)
    asked_for.check(options)
    state = open_state()
    console = standard_console(is_json=is_json)
    with state.lock() as is_free:
        if is_free and not detach:
            _stay(state, options, console, is_json)
            return
    if not is_free:
        running = wait_until_ready(state)
        if (reason := asked_for.refusal(asked, running)) is not None:
            raise StackError(reason)
        console.print("[green]Millrace is already running.[/] `make down` stops it.")
        _show(state, running, console, is_json)
        return
    progress = Progress(console)
    with contextlib.closing(progress):
        _start_daemon(state, options, progress)
    if problem := _welcome(state, options, console, is_json):
        raise StackError(f"Millrace runs, but the first prompt failed: {problem}")


def _stay(state: StateFolder, options: UpOptions, console: Console, is_json: bool) -> None:
    """In the foreground until Ctrl-C. A second Ctrl-C doesn't wait for running jobs."""
    log_to(state.logs / "supervisor.log")
    progress = Progress(console)
    stack = Stack(state, options, progress)
    with _signals_as_interrupt():
        try:
            with contextlib.closing(progress):
                stack.start()
            if problem := _welcome(state, options, console, is_json):
                console.print(f"the first prompt failed: {problem}", markup=False)
            console.print("Ctrl-C stops it.")
            threading.Event().wait()
        except KeyboardInterrupt:
            console.print("\nstopping: running jobs finish or go back to the queue")
        finally:
            _stop(stack, console)


def _stop(stack: Stack, console: Console) -> None:
    try:
        stack.stop()
    except KeyboardInterrupt:
        console.print("stopping at once")
        stack.stop(is_urgent=True)
    console.print("stopped; state and data stay in .millrace")


def _start_daemon(state: StateFolder, options: UpOptions, progress: Progress) -> None:
    """Start the background supervisor and show its progress until it is ready."""
    log_path = state.logs / "supervisor.log"
    with log_path.open("ab") as log:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "cli.stack.daemon", options.to_json()],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"MILLRACE_STATE_DIR": str(state.path)},
        )
    assert daemon.stdout is not None
    try:
        for line in daemon.stdout:
            message = json.loads(line)
            if message["step"] == Step.READY:
                return
            if message["step"] == Step.ERROR:
                daemon.wait()  # until it has stopped what it had started
                raise StackError(message["text"])
            progress(Step(message["step"]), message["text"])
    except KeyboardInterrupt:
        daemon.terminate()
        daemon.wait()
        raise StackError("interrupted; all that had been started is stopped") from None
    raise StackError(f"the supervisor ended, see {log_path}:\n{tail(log_path)}")


def _welcome(state: StateFolder, options: UpOptions, console: Console, is_json: bool) -> str | None:
    """Show the first job and where everything is. Returns what went wrong with the job."""
    running = state.read_running()
    assert running is not None
    write_env(state, running.addresses["api"])
    problem = None
    if not is_json:
        problem = _show_first_job(state, options, running, console)
    _show(state, running, console, is_json)
    return problem


def _show_first_job(
    state: StateFolder, options: UpOptions, running: Running, console: Console
) -> str | None:
    model = served_model(options)
    if (reason := _refusal(state, model)) is not None:
        return f"the model {model} is not served: {reason}"
    console.print(f"\n[bold]{model}>[/] {PROMPT}")
    try:
        job = first_job(
            running.addresses["api"],
            state.find_secret("api_key") or "",
            model=model,
            on_text=lambda text: console.print(text, end="", markup=False, highlight=False),
        )
        console.print(f"\n\n{job.id}: {job.status}", highlight=False)
        console.print(f"ledger: {ledger_line(owner_url(state), job.id)}", highlight=False)
    except (StackError, MillraceError) as error:
        return str(error)
    return None if job.status in ("completed", "incomplete") else f"{job.id} is {job.status}"


def _refusal(state: StateFolder, model: str) -> str | None:
    """Asked here, as the API hears of it some seconds later."""
    with connect(owner_url(state), application_name="millrace-up") as connection:
        return refusals_of(list_live(connection)).get(model)


def _show(state: StateFolder, running: Running, console: Console, is_json: bool) -> None:
    url = running.addresses["api"]
    key = state.find_secret("api_key")
    if is_json:
        names = {"url": url, "flower_url": running.addresses["flower"], "api_key": key}
        print(json.dumps(names | {"env_file": str(state.env_path), "pid": running.supervisor.pid}))
        return
    secrets = state.path / "secrets.json"
    lines = [
        "",
        f"API      {url}   (schema: {url}/openapi.json)",
        f"Flower   {running.addresses['flower']}   (user {FLOWER_USER}, password in {secrets})",
        f"metrics  {running.addresses.get('metrics', '')}   (the API's; each process has its own)",
        f"key      {key}   (source {state.env_path} sets MILLRACE_URL, MILLRACE_API_KEY)",
        "",
        "Try:",
        *_commands(state),
        "",
    ]
    console.print("\n".join(lines), markup=False, highlight=False)


def _commands(state: StateFolder) -> list[str]:
    """Create a job, then follow its events; both end by themselves."""
    key = '-H "Authorization: Bearer $MILLRACE_API_KEY"'
    body = '{"model": "demo", "messages": [{"role": "user", "content": "What is a job?"}]}'
    take_id = """python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])'"""
    return [
        f"  source '{state.env_path}'",
        f'  JOB=$(curl -s "$MILLRACE_URL/v1/jobs" {key} \\',
        f"    -H 'Content-Type: application/json' -d '{body}' \\",
        f"    | {take_id})",
        f'  curl -sN "$MILLRACE_URL/v1/jobs/$JOB/events" {key}',
    ]


@contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """SIGTERM, and a terminal that was closed, stop it as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
