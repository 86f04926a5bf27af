"""kombu's Redis transport, whose channels outlive their connection without ending the worker, and
leave nothing open behind them.

When Redis dies with a message taken and not yet acknowledged, kombu 5.7 closes the connection in
two passes. The first stops at the first channel that can't tell Redis what it deletes, and takes
the connection from all of them. The second then wants to give the message back, through a channel
that no longer knows where Redis is. That is an AttributeError, which Celery takes for a fault of
its own, not of the connection: the worker ends. A late acknowledgement goes the same way.

Here it is a connection error, which each of them expects. A Redis that takes no writes, such as one
whose disk is full, stops the first pass too, and all that was open stays so: what a channel wanted
to delete is let be. And Celery closes no connection that it couldn't register: it is closed here.
A connection that is closed is also forgotten by the event loop, which outlives it.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

# Where kombu's poller keeps what it asked of a loop's timer.
_TIMERS = (
    "_restore_messages_tref",
    "_subclient_health_tref",
    "_brpop_health_tref",
    "_reauth_tref",
    "_binding_expiry_tref",
)


class Channel(kombu_redis.Channel):
    """A channel that says what has happened when its connection is gone."""

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        """Where Redis is. Raises redis.ConnectionError once the connection is closed."""
        if self.connection is None or self.connection.client is None:
            raise RedisConnectionError("the connection of this channel is closed")
        parameters: dict[str, Any] = super()._connparams(asynchronous=asynchronous)
        return parameters

    def close(self) -> None:
        """As kombu, which opens its pool anew to give back what wasn't acknowledged."""
        try:
            super().close()
        finally:
            self._disconnect_pools()

    def _delete(self, *arguments: Any, **named: Any) -> None:
        """Raises what Redis raises, but not while the channel closes."""
        try:
            super()._delete(*arguments, **named)
        except (RedisError, OSError):
            if not self._closing:
                raise


class Transport(kombu_redis.Transport):
    """What stands behind redis:// and rediss:// once `install` was called."""

    Channel = Channel

    _loop: Any = None
    _ticks: frozenset[Any] = frozenset()  # callbacks that the loop calls for this transport

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Raises what Redis says, and closes the connection first: Celery drops it as it is."""
        self._leave_loop()
        before = frozenset(loop.on_tick)
        try:
            super().register_with_event_loop(connection, loop)
        except BaseException:
            self._loop, self._ticks = loop, loop.on_tick - before
            self.close_connection(connection)
            raise
        self._loop, self._ticks = loop, loop.on_tick - before

    def close_connection(self, connection: Any) -> None:
        """The loop goes on with another one, and forgets this."""
        self._leave_loop()
        super().close_connection(connection)

    def _leave_loop(self) -> None:
        """kombu leaves its callbacks there, and 130 KB of a transport with each."""
        if self._loop is None:
            return
        self._loop.on_tick -= self._ticks
        for name in _TIMERS:
            if (entry := getattr(self.cycle, name, None)) is not None:
                entry.cancel()
                setattr(self.cycle, name, None)
        self._loop, self._ticks = None, frozenset()


def install() -> None:
    """Before the process's first connection; kombu remembers what it found for a scheme."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:{Transport.__name__}"
