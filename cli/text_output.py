"""A job's text on the terminal as it is produced."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cli.errors import CommandError
from cli.output import print_json

if TYPE_CHECKING:
    from millrace import Client, Event, Job


def follow(client: Client, job_id: str, *, is_json: bool = False) -> Job:
    """Print events (as JSON) or the text of the first choice until the job is over."""
    show = _print_event if is_json else Written().add
    for event in client.jobs.events(job_id):
        show(event)
        if event.job is not None:
            return event.job
    raise CommandError(f"the events of {job_id} ended without a result")


class Written:
    """Text already on the screen, so that a restated text adds what is new and no more."""

    def __init__(self) -> None:
        self.text = ""

    def add(self, event: Event) -> None:
        """A `token` goes on; a `gap` restates all so far; further choices wait for the end."""
        if event.type == "gap":
            self._restate(str(event.data["text"]))
        elif event.type == "token" and event.data.get("index", 0) == 0:
            self._write(event.text)
        elif event.job is not None:
            self._end(event.job)

    def _end(self, job: Job) -> None:
        """The job's result has the last word, also on further choices."""
        self._restate(job.text)
        for output in job.output[1:]:
            print(f"\n\n--- choice {output.index}\n{output.text}", end="")
        print(flush=True)

    def _restate(self, whole: str) -> None:
        if whole.startswith(self.text):
            self._write(whole.removeprefix(self.text))
        elif not self.text.startswith(whole):
            print()
            self.text = ""
            self._write(whole)

    def _write(self, text: str) -> None:
        print(text, end="", flush=True)
        self.text += text


def _print_event(event: Event) -> None:
    print_json({"event": event.type, "id": event.seq, "data": event.data})


def require_success(job: Job) -> None:
    """Says on stderr how it was cut short; raises CommandError if it failed."""
    if job.status == "incomplete":
        reason = (job.incomplete_details or {}).get("reason", "unknown")
        print(f"millrace: the answer is incomplete: {reason}", file=sys.stderr)
    elif job.status != "completed":
        reason = f": {job.error.message}" if job.error else ""
        raise CommandError(f"job {job.id} {job.status}{reason}")


def lines_of(stream: Iterator[str]) -> Iterator[str]:
    """Lines that say something."""
    return (line for raw in stream if (line := raw.strip()))
