"""Choosing TCP ports on 127.0.0.1."""

from __future__ import annotations

import contextlib
import os
import random
import socket

import psutil

_FIRST_UNPRIVILEGED = 1024
# Below the range that outgoing connections get their ports from: a server that restarts finds its
# port free.
_RANGE = range(20_000, 32_000)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose(wanted: int | None = None) -> int:
    """`wanted` if it is free, else any free port. Another process may take it before you do."""
    if wanted is not None and is_free(wanted):
        return wanted
    while not is_free(port := random.choice(_RANGE)):
        pass
    return port


def next_free(first: int) -> int:
    """The first free port from `first` on: people find 8001 more easily than 23127."""
    return next((port for port in range(first, first + 100) if is_free(port)), choose())


def refusal(port: int) -> str | None:
    """Why nobody can listen on this port now, for people; None if it is free."""
    if is_free(port):
        return None
    if port < _FIRST_UNPRIVILEGED and os.geteuid() != 0:
        return "is for root only"
    return f"is taken{_holder(port)}"


def _holder(port: int) -> str:
    """` by NAME (pid N)` if the system lets us see who listens there, else nothing."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            is_holder = connection.laddr and connection.laddr.port == port and connection.pid
            if is_holder and connection.status == psutil.CONN_LISTEN:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""
