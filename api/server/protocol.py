"""One connection: uvicorn's own protocol, with an end to everything a peer may leave undone.

How large a body may be is the middleware's to say, how long an answer may take the route's.
"""

from __future__ import annotations

import asyncio
import math
import sys
from functools import partial
from typing import Any

import httptools
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.errors import error_response
from api.server.answers import raw
from api.server.bounds import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_PIPELINED,
    MIN_BODY_BYTES_PER_S,
)
from api.server.connections import Connections
from api.server.exchange import Exchange, log
from api.server.heads import read_head, refusal_of, without_upgrade
from api.settings import HEALTH_PATHS
from tasks.errors import (
    HeadersTooLarge,
    InvalidRequest,
    RequestTimeout,
    ServiceError,
    ServiceUnavailable,
)

_NEVER = math.inf


class BoundedProtocol(HttpToolsProtocol):
    """Made by the server for each connection it accepts."""

    cycle: Exchange

    def __init__(self, connections: Connections, refusing: ASGIApp, **of_uvicorn: Any) -> None:
        """`refusing` stands for the application while no more requests can be carried."""
        super().__init__(**of_uvicorn)
        self._refusing: Any = refusing
        self.logger = log
        self._all = connections
        self._timeouts = connections.timeouts
        self._refusal: ServiceError | None = None
        self._is_refused = False  # or is about to be, behind others
        self._is_leaving = False  # has said all it has to say, and that it goes
        self._read_by = _NEVER  # when what is being read must be there
        self._write_by = _NEVER  # when the peer must have read some of the buffer
        self._closed_by = _NEVER
        self._has_begun = False  # a head is incomplete
        self._began_here = False  # in the bytes that are being parsed
        self._num_headers = 0
        self._num_bytes = 0  # of this request, what is no body
        self._num_body_bytes = 0
        self._received = b""  # what is being parsed
        self._is_told_again = False  # the head of a request whose upgrade is ignored

    # What uvicorn calls ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait(self._timeouts.idle_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused or self._is_leaving:
            self._drop(data)
            return
        self._began_here = False
        self._parse(data)
        if self._is_refused or self.transport.is_closing():
            return
        if self._is_dropping:  # nobody needs it: it has to end as a head has, and is in no hurry
            self._rest(self._all.drops.delay_s(len(data)))
        if not self._began_here:  # else what of it belongs to the request before can't be told
            self._num_bytes += len(data)
        if self._num_bytes > MAX_HEAD_BYTES + self._num_body_bytes:
            self._refuse(HeadersTooLarge())

    def on_message_begin(self) -> None:
        if self._is_told_again:
            return
        super().on_message_begin()
        self._has_begun = self._began_here = True
        self._num_headers = self._num_bytes = self._num_body_bytes = 0
        if not self._is_answering:
            self._read_by = self._all.clock() + self._timeouts.head_s

    def on_url(self, url: bytes) -> None:
        if not self._is_told_again:
            super().on_url(url)

    # Called for what stands behind a body in chunks too: it is no part of the head, so nobody reads
    # a length or a key there.

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_told_again:
            return
        self._num_headers += 1
        if self._num_headers > MAX_HEADERS:
            raise self._noted(HeadersTooLarge())
        if self._has_begun:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_told_again:
            self._is_told_again = False
            return
        self._has_begun = False
        try:
            if len(self.pipeline) >= MAX_PIPELINED:
                raise InvalidRequest("Too many requests at once on one connection.")
            version = self.parser.get_http_version()
            read_head(self.scope, self.parser.get_method(), version, self.url)
        except ServiceError as error:
            raise self._noted(error) from None
        self._begin_exchange()
        self._all.note_busy(self)
        self._read_by = self._all.clock() + self._timeouts.body_s

    def on_body(self, body: bytes) -> None:
        self._num_bytes -= len(body)
        self._num_body_bytes += len(body)
        if self._is_answering:
            earned_s = len(body) / MIN_BODY_BYTES_PER_S
            self._read_by = min(self._read_by + earned_s, self._all.clock() + self._timeouts.body_s)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # the parser doesn't look for a body: told again, it will
        if self._is_answering:
            self._read_by = _NEVER
        super().on_message_complete()

    def on_response_complete(self) -> None:
        is_more = bool(self.pipeline)
        if self.cycle.is_cut or (self._is_refused and not self._has_whole_next):
            if not self.transport.is_closing():
                self._leave()
            return
        super().on_response_complete()
        if not is_more:
            self._wait(self._timeouts.head_s if self.cycle.more_body else self._timeouts.idle_s)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_by = self._all.clock() + self._timeouts.stall_s

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_by = _NEVER

    def _unsupported_upgrade_warning(self) -> None:
        """No upgrade is made, so the request is one like others, with a body perhaps. Its parser
        has given up; a new one is told how the body ends and takes what has come behind the head.
        """
        upgrade = sys.exception()
        assert isinstance(upgrade, httptools.HttpParserUpgrade)
        rest = self._received[upgrade.args[0] :]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._is_told_again = True
        self.parser.feed_data(without_upgrade(self.headers))
        self._parse(rest)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's word for a request that can't be parsed, or that a callback refused."""
        self._refuse(self._refusal or refusal_of(sys.exception(), self._received))

    # What Connections calls -----------------------------------------------------------------------

    def let_go(self) -> None:
        """As Connection.let_go. Who has begun to say something is told to come again."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # it doesn't read, so it would linger
            return
        if self._has_begun and not self._is_leaving:
            self._answer(ServiceUnavailable())
        self.transport.close()  # at once: its descriptor is needed now

    def tick(self, now: float) -> None:
        """As Connection.tick."""
        is_closing = self.transport.is_closing()
        if is_closing:
            self._closed_by = min(self._closed_by, now + self._timeouts.linger_s)
        if now >= min(self._write_by, self._closed_by):
            self.transport.abort()
        elif self._is_answering and self.flow.read_paused:
            self._read_by += self._timeouts.tick_s  # it is we who don't read
        elif now >= self._read_by and not is_closing:
            self._end_late()

    # ----------------------------------------------------------------------------------------------

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _has_whole_next(self) -> bool:
        return bool(self.pipeline) and not self.pipeline[-1][0].more_body

    @property
    def _is_dropping(self) -> bool:
        """Whether what comes is the rest of a body that was answered unread."""
        return self.cycle is not None and self.cycle.response_complete and self.cycle.more_body

    def _parse(self, data: bytes) -> None:
        self._received = data
        super().data_received(data)

    def _begin_exchange(self) -> None:
        """Or put it behind those that came before it on the connection."""
        is_first = not self._is_answering
        self.cycle = Exchange.begun(self)
        is_served = self._all.has_room or self.scope["path"].encode() in HEALTH_PATHS
        app: Any = self.config.loaded_app if is_served else self._refusing
        if is_first:
            self._start_asgi_task(self.cycle, app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, app))

    def _rest(self, delay_s: float) -> None:
        """Read no more for so long, so that many who send what nobody reads don't fill the loop."""
        if delay_s > 0:
            self.flow.pause_reading()
            self.loop.call_later(delay_s, self._go_on, self._all.clock() + delay_s)

    def _go_on(self, due_at: float) -> None:
        self._all.drops.note_begun(due_at)
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _wait(self, timeout_s: float) -> None:
        self._read_by = self._all.clock() + timeout_s
        self._all.note_waiting(self)

    def _end_late(self) -> None:
        if not self._is_leaving and (self._has_begun or self._is_answering):
            self._refuse(RequestTimeout())
        else:
            self.transport.close()

    def _noted(self, error: ServiceError) -> ServiceError:
        """To be raised in a callback of the parser, which keeps the reason to itself."""
        self._refusal = error
        return error

    def _refuse(self, error: ServiceError) -> None:
        """End it, behind others that are refused in the same moment."""
        if not self._is_refused:
            self._is_refused = True
            self._all.refusals.add(partial(self._end, error))

    def _end(self, error: ServiceError) -> None:
        """Answer, unless another answer has begun, and close: behind the answers to what had come
        whole before, which are the only ones then.
        """
        if self.transport.is_closing() or self._is_leaving:
            return
        if self._is_answering and self.cycle.response_started:
            self.transport.close()
        elif self.pipeline or (self._is_answering and not self.cycle.more_body):
            self.cycle.keep_alive = False
        else:
            self._answer(error)
            self._leave()

    def _answer(self, error: ServiceError) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = True  # what its application still says is too late
            self.cycle.message_event.set()
        self.transport.write(raw(error_response(error)))

    def _leave(self) -> None:
        """Close, but read what still comes for a while: unread, it would reset the answer."""
        self._is_leaving = True
        self._closed_by = self._all.clock() + self._timeouts.linger_s
        self._wait(self._timeouts.quiet_s)
        self.flow.resume_reading()
        self.transport.write_eof()

    def _drop(self, data: bytes) -> None:
        if self._is_leaving:
            self._read_by = self._all.clock() + self._timeouts.quiet_s
        self._rest(self._all.drops.delay_s(len(data)))
