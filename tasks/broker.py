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
"""

from __future__ import annotations

from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError


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

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Raises what Redis says, and closes the connection first: Celery drops it as it is."""
        try:
            super().register_with_event_loop(connection, loop)
        except BaseException:
            self.close_connection(connection)
            raise


def install() -> None:
    """Before the process's first connection; kombu remembers what it found for a scheme."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:{Transport.__name__}"
