"""How many connections fit below the process's limit of open files."""

from __future__ import annotations

import resource

# Kept for all that is no client: Postgres and Redis (up to 120), contents of files being moved
# (up to 320), sandboxes of grammars, logs, listening sockets.
RESERVED = 512
DEFAULT_MAX_CONNECTIONS = 20_000
MIN_CONNECTIONS = 64


class TooFewDescriptors(Exception):
    """The limit of open files leaves no room for the connections that are wanted."""


def max_connections(wanted: int | None, *, spare: int) -> int:
    """How many connections to carry, after the limit was raised as far as that is allowed.

    `spare` more are needed for moments. Raises TooFewDescriptors if there is no room for what was
    asked for; nobody asked, and the limit decides.
    """
    limit = raise_limit()
    room = limit - RESERVED - spare
    least = MIN_CONNECTIONS if wanted is None else wanted
    if room < least:
        raise TooFewDescriptors(
            f"{least} connections need a limit of {least + RESERVED + spare} open files, and this"
            f" process may have {limit}: raise it (ulimit -n) or lower MILLRACE_MAX_CONNECTIONS."
        )
    return min(DEFAULT_MAX_CONNECTIONS, room) if wanted is None else wanted


def raise_limit() -> int:
    """Raise the soft limit of open files to the hard one. Returns what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
