"""What stops `millrace up`. The message says what to do; the CLI prints only that."""

from __future__ import annotations


class StackError(Exception):
    """A process or service that can't be started, found or stopped."""
