"""Progress bars on stderr; nothing where stderr is no terminal. Imports rich: only commands that
show a bar import this, when they run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from millrace import BatchProgress

# Speed and time left are of so much of the past: a batch goes on by many lines at once.
_SPEED_OF_S = 120.0


class _Amount(ProgressColumn):
    """How much of how much: bytes, or a count."""

    def render(self, task: Task) -> Text:
        write = _writer(task)
        total = "?" if task.total is None else write(task.total)
        return Text(f"{write(task.completed)}/{total}", style="progress.download")


class _Rate(ProgressColumn):
    """How much a second, once that is known."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text("")
        rate = decimal(int(speed)) if task.fields["is_bytes"] else f"{speed:.1f}"
        return Text(f"{rate}/s", style="progress.data.speed")


@contextmanager
def bytes_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Of one file. The function takes bytes so far, and in all (0 if that is not known)."""
    with _bars() as bars:
        task = bars.add_task(what, total=None, is_bytes=True)
        yield lambda done, total: bars.update(task, completed=done, total=total or None)


@contextmanager
def batch_progress() -> Iterator[Callable[[BatchProgress], None]]:
    """Of the upload in bytes, then of the batch in lines. What a batch waits for is said on a pipe
    too, once: without credit it may be a day.
    """
    with _bars() as bars:
        upload = bars.add_task("upload", total=None, is_bytes=True)
        lines = bars.add_task("", total=None, start=False, visible=False, is_bytes=False)
        said: str | None = None

        def show(now: BatchProgress) -> None:
            if now.batch is None:
                bars.update(upload, completed=now.bytes_sent, total=now.bytes_total)
                return
            nonlocal said
            if now.batch.waits_for != said and (said := now.batch.waits_for):
                text = f"millrace: {now.batch.id} waits: {said}"
                bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
            counts = now.batch.request_counts
            failed = f", {counts.failed} failed" if counts.failed else ""
            bars.update(upload, visible=False)
            bars.start_task(lines)
            bars.update(
                lines,
                description=f"{now.batch.status}{failed}",
                completed=counts.ended,
                total=counts.total or None,
                visible=True,
            )

        yield show


@contextmanager
def _bars() -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        _Amount(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns,
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=_SPEED_OF_S,
    ) as bars:
        yield bars


def _writer(task: Task) -> Callable[[float], str]:
    return (lambda n: decimal(int(n))) if task.fields["is_bytes"] else (lambda n: str(int(n)))
