"""kombu's Redis transport, whose channels outlive their connection without ending the worker.

When Redis dies with a message taken and not yet acknowledged, kombu 5.7 closes the connection in
two passes. The first stops at the first channel that can't tell Redis what it deletes, and takes
the connection from all of them. The second then wants to give the message back, through a channel
that no longer knows where Redis is. That is an AttributeError, which Celery takes for a fault of
its own, not of the connection: the worker ends. A late acknowledgement goes the same way.

Here it is a connection error, which each of them expects.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from redis.exceptions import ConnectionError as RedisConnectionError


class Channel(kombu_redis.Channel):
    """A channel that says what has happened when its connection is gone."""

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        """Where Redis is. Raises redis.ConnectionError once the connection is closed."""
        if self.connection is None or self.connection.client is None:
            raise RedisConnectionError("the connection of this channel is closed")
        parameters: dict[str, Any] = super()._connparams(asynchronous=asynchronous)
        return parameters


class Transport(kombu_redis.Transport):
    """What stands behind redis:// and rediss:// once `install` was called."""

    Channel = Channel


def install() -> None:
    """Before the process's first connection; kombu remembers what it found for a scheme."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:{Transport.__name__}"
