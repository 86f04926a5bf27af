"""`python -m api.server --host 127.0.0.1 --port 8000`: one API process."""

from __future__ import annotations

import argparse
import gc
import math
import socket
import sys
from contextlib import suppress
from functools import partial

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from api.app import app
from api.cors import CorsSettings, with_cors
from api.server.answers import full
from api.server.connections import SPARE, Connections
from api.server.descriptors import TooFewDescriptors, max_connections
from api.server.protocol import BoundedProtocol
from api.settings import ServerSettings

# Streams still open after this are cut; their readers resume at another replica.
_DRAIN_S = 10
_BACKLOG = 4_096  # connections that the system holds for us until we get to them
_USER_TIMEOUT_MS = 60_000  # a peer that vanished without a word while something is sent to it
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # while nothing is


def main() -> None:
    """Serves until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m api.server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8_000)
    options = parser.parse_args()
    try:
        bound = max_connections(ServerSettings().max_connections, spare=SPARE)
    except TooFewDescriptors as error:
        sys.exit(str(error))
    app.state.max_connections = bound
    prepare(app)
    config = server_config(app, Connections(bound), host=options.host, port=options.port)
    listener = config.bind_socket()
    listener.set_inheritable(False)
    _notice_lost_peers(listener)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


def prepare(served: FastAPI) -> None:
    """Do now what would hold the event loop for long later."""
    served.openapi()
    # What is imported and built lives as long as the process. To look through all of it for garbage
    # takes more than 100 ms, which a request with many objects would bring about.
    gc.collect()
    gc.freeze()


def server_config(
    app: ASGIApp, connections: Connections, *, host: str = "127.0.0.1", port: int = 0
) -> uvicorn.Config:
    """How uvicorn runs an application."""
    refusing = with_cors(full, CorsSettings().cors_origins)
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=partial(BoundedProtocol, connections, refusing),  # type: ignore[arg-type]
        ws="none",
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=math.ceil(connections.timeouts.idle_s),
        timeout_graceful_shutdown=_DRAIN_S,
    )


def _notice_lost_peers(listener: socket.socket) -> None:
    """Connections take these options from the socket that accepts them. Systems differ in them."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {**_KEEPALIVE, "TCP_USER_TIMEOUT": _USER_TIMEOUT_MS}.items():
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


if __name__ == "__main__":
    main()
