"""What `millrace up` shows while it works: one line a step, a spinner for the one under way."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from cli.stack.options import Step


class Progress:
    """A Report for people. On a pipe it prints plain lines without a spinner."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._started = time.monotonic()

    def __call__(self, step: Step, text: str) -> None:
        text = escape(text)  # what a library says of a model may look like markup
        if step is Step.BEGIN:
            self._begin(text)
        elif step is Step.DONE:
            elapsed_s = time.monotonic() - self._started
            self._console.print(f"[green]✓[/] {text} [dim]({elapsed_s:.1f} s)[/]", highlight=False)
        elif step is Step.NOTE:
            self._console.print(f"[yellow]·[/] {text}", highlight=False)

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _begin(self, text: str) -> None:
        self.close()
        if self._console.is_terminal:
            self._status = self._console.status(text)
            self._status.start()
        else:
            self._console.print(f"  {text} ...", highlight=False)


def standard_console(*, is_json: bool) -> Console:
    """Progress goes to stderr when stdout carries JSON."""
    return Console(file=sys.stderr if is_json else sys.stdout, soft_wrap=True)
