"""A process that has loaded the packages of others; its forks become programs of ours.

`python -m tests.support.warm_process FD`: reads requests from a socket and answers each. To import
them anew is most of what a short command or a small process takes. It imports nothing of ours: what
a process loads, and when, is part of what is tested.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import runpy
import signal
import socket
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1
_MAX_REQUEST = 1 << 20  # bytes
_OTHERS = (
    "celery.__main__",
    "celery.apps.beat",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.bin.celery",
    "celery.bin.worker",
    "celery.concurrency.thread",
    "celery.events.state",
    "celery.fixups.django",
    "celery.worker.autoscale",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.control",
    "celery.worker.strategy",
    "fastapi",
    "fsspec",
    "fsspec.implementations.local",
    "httptools",
    "httpx",
    "jinja2.ext",
    "jinja2.sandbox",
    "kombu.transport.redis",
    "llguidance",
    "multipart",
    "orjson",
    "prometheus_client.core",
    "psutil",
    "psycopg",
    "psycopg.types.json",
    "psycopg_pool",
    "pydantic.v1",
    "pydantic_settings",
    "redis.asyncio",
    "rich.console",
    "rich.live",
    "rich.markdown",
    "rich.progress",
    "rich.table",
    "rich.traceback",
    "starlette.middleware.cors",
    "structlog",
    "tokenizers",
    "typer",
    "typer.rich_utils",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.http.httptools_impl",
    "uvloop",
)


def main() -> None:
    """Returns in a fork alone, once it is the program that was asked for, in all but its code."""
    for name in _OTHERS:
        with contextlib.suppress(ImportError):  # of another extra, or another version
            importlib.import_module(name)
    gc.freeze()
    control = socket.socket(fileno=int(sys.argv[1]))
    while request := _next_request(control):
        message, fds = request
        if "poll" in message:
            answer = _poll(message["poll"])
        elif pid := os.fork():
            answer = pid
        else:
            control.close()
            _become(message, fds)
            return
        for fd in fds:
            os.close(fd)
        control.sendall(json.dumps(answer).encode() + b"\n")
    os._exit(0)  # nobody asks any more; the kernel ends the forks


def _next_request(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """None at the end. A datagram's length comes first, with the descriptors."""
    head, fds, _, _ = socket.recv_fds(control, 8, 3)
    if not head:
        return None
    length, body = int.from_bytes(head, "big"), b""
    assert length <= _MAX_REQUEST
    while len(body) < length:
        body += control.recv(length - len(body))
    return json.loads(body), fds


def _poll(pid: int) -> int | None:
    """Its exit code, as `subprocess` writes it; None while it runs. A code is told once."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _become(message: dict[str, Any], fds: list[int]) -> None:
    os.setsid()
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    _die_with_parent(message["death_signal"])
    os.environ.clear()
    os.environ.update(message["environment"])
    os.chdir(message["folder"])
    sys.argv = message["arguments"]
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (for its whole life)
    sys.stdout, sys.stderr = _writer(1), _writer(2)


def _die_with_parent(death_signal: int) -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _writer(number: int) -> io.TextIOWrapper:
    is_unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    errors = "backslashreplace" if number == 2 else "strict"
    raw = open(number, "wb", closefd=False)  # noqa: SIM115 (for its whole life)
    return io.TextIOWrapper(
        raw,
        encoding="utf-8",
        errors=errors,
        line_buffering=number == 2 or is_unbuffered,
        write_through=is_unbuffered,
    )


if __name__ == "__main__":
    main()
    # Down here, so that the interpreter ends it as it ends any program: codes, threads, atexit.
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
