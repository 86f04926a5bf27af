"""One request and its answer: uvicorn's own, with an end that every client understands."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Self

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

# uvicorn's own, without its word for every request that can't be parsed: anybody could fill a disk.
# By a filter, since uvicorn sets levels anew when it starts.
log = logging.getLogger("uvicorn.error.connections")
log.addFilter(lambda record: record.levelno >= logging.ERROR)


class Exchange(RequestResponseCycle):
    """Ended by the close of the connection where the client knows no chunks, and closed without a
    reset where it still sends a body that nobody reads.
    """

    is_cut = False  # the answer is complete and says that the connection closes; the body isn't
    _is_open_ended = False

    @classmethod
    def begun(cls, protocol: HttpToolsProtocol) -> Self:
        """Of the request whose head the protocol has read."""
        is_modern = protocol.scope["http_version"] != "1.0"
        return cls(
            scope=protocol.scope,
            transport=protocol.transport,
            flow=protocol.flow,
            logger=protocol.logger,
            access_logger=protocol.access_logger,
            access_log=protocol.access_log,
            default_headers=protocol.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=protocol.expect_100_continue and is_modern,
            keep_alive=protocol.parser.should_keep_alive() and is_modern,
            on_response=protocol.on_response_complete,
        )

    async def send(self, message: Any) -> None:
        """As ASGI has it."""
        if not self.response_started:
            self._begin(message)
        else:
            self._go_on(message)
        await super().send(message)

    def _begin(self, message: Any) -> None:
        # Whoever waits to be told to send its body may leave it out now, or not: what comes next
        # can't be known.
        self.keep_alive = self.keep_alive and not self.waiting_for_100_continue
        if self.scope["http_version"] == "1.0" and not _has_length(message):
            self._is_open_ended = True
            self.chunked_encoding = False  # as if it had a length

    def _go_on(self, message: Any) -> None:
        if self._is_open_ended:
            self.expected_content_length = len(message.get("body", b""))
        if self.more_body and not self.keep_alive and not message.get("more_body", False):
            self.is_cut = self.keep_alive = True  # it is the protocol that closes


def _has_length(message: Any) -> bool:
    return any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
