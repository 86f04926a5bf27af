"""A connection on which Redis tells of many jobs: what has come by then is taken at once.

redis-py's own `PubSub` takes the time of all else that an API process does with a token.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import hiredis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

READ_BYTES = 65_536  # at once: some hundred messages, which take a few ms


class Message(NamedTuple):
    """`message`, or the answer to a command: `subscribe`, `unsubscribe`, `pong`."""

    kind: bytes
    channel: bytes = b""
    data: Any = b""


class Subscription:
    """Made by redis-py, which knows how to get in; read by ourselves. Once it breaks it is over:
    a silent reconnect would hide lost messages. All raise redis errors and OSError.
    """

    def __init__(self, redis: Redis) -> None:
        self._pool = redis.connection_pool
        self._connection: Any = None
        self._stream: Any = None
        self._replies = hiredis.Reader(replyError=ResponseError)
        self._has_more = False

    async def connect(self) -> None:
        """Call first, once."""
        self._connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        # No answer is on its way any more, so nothing is left in redis-py's own parser.
        self._stream = self._connection._reader

    async def subscribe(self, *names: str) -> None:
        """Redis acknowledges each by a message."""
        await self._send("SUBSCRIBE", *names)

    async def unsubscribe(self, *names: str) -> None:
        """The same."""
        await self._send("UNSUBSCRIBE", *names)

    async def ping(self) -> None:
        """Answered by a message."""
        await self._send("PING")

    async def read(self, timeout_s: float) -> list[Message]:
        """All that has come, at least one; none after a silence of so long."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._read()
        except TimeoutError:
            return []

    async def close(self) -> None:
        """May be called twice, and without `connect`."""
        if self._connection is None:
            return
        connection, self._connection = self._connection, None
        await connection.disconnect(nowait=True)
        await self._pool.release(connection)

    async def _send(self, *words: str) -> None:
        if self._connection is None or self._connection._reader is not self._stream:
            raise RedisConnectionError("the connection is gone")
        await self._connection.send_command(*words, check_health=False)

    async def _read(self) -> list[Message]:
        while True:
            if self._has_more:
                await asyncio.sleep(0)  # else nobody else has a turn in a flood
            data = await self._stream.read(READ_BYTES)
            if not data:
                raise RedisConnectionError("Redis has closed the connection")
            self._has_more = len(data) == READ_BYTES
            self._replies.feed(data)
            if messages := self._messages():
                return messages

    def _messages(self) -> list[Message]:
        messages = []
        while (reply := self._replies.gets()) is not False:
            messages.append(_message(reply))
        return messages


def _message(reply: Any) -> Message:
    """In either protocol a message is a list; only RESP2's pong is one too."""
    if isinstance(reply, Exception):
        raise reply
    return Message(*reply) if isinstance(reply, list) else Message(b"pong")
