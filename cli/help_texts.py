"""What `--help` shows beside the words of each command: groups of commands, and examples."""

from __future__ import annotations

THIS_MACHINE = "This machine"
JOBS = "Jobs and models"
FILES = "Batches and files"
OPERATORS = "For operators"

MAIN = """
Examples:

millrace up --detach                         start everything on this machine

millrace chat                                talk with a model

millrace submit "What is a lease?"           a job of its own; prints its id

millrace batch run requests.jsonl            many requests; results as they come

Jobs, models, batches and files are asked of MILLRACE_URL with MILLRACE_API_KEY, else of what
`millrace up` started here. `millrace COMMAND --help` says more.

Exit codes: 0 done, 1 failed (one line on stderr says why), 2 misuse, 130 Ctrl-C.
"""


def examples(*lines: str) -> str:
    """An epilog: typer joins single lines, so each is a paragraph."""
    return "\n\n".join(("Example:" if len(lines) == 1 else "Examples:", *lines))
