"""What `millrace up` prints of what others say."""

from __future__ import annotations

import io

from rich.console import Console

from cli.stack.console import Progress
from cli.stack.options import Step


def test_a_reason_that_looks_like_markup_is_printed_as_it_is() -> None:
    reason = "model m is not served: [/a] has the shape [red][4, 4]"
    printed = io.StringIO()
    progress = Progress(Console(file=printed, soft_wrap=True))

    for step in (Step.BEGIN, Step.DONE, Step.NOTE):
        progress(step, reason)

    assert [reason in line for line in printed.getvalue().splitlines()] == [True] * 3
