"""What stops `millrace up`. The message says what to do; the CLI prints only that."""

from __future__ import annotations


class StackError(Exception):
    """A process or service that can't be started, found or stopped."""

    exit_code = 1


class MisuseError(StackError):
    """An option has a value that it can't have on any machine."""

    exit_code = 2
