"""Where a word still stands that should stand nowhere."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import redis


def found_in_postgres(owner: psycopg.Connection[dict[str, Any]], canary: str) -> list[str]:
    """Tables and columns with the word, whatever their type; logs are unpacked."""
    columns = owner.execute(
        "SELECT c.table_name, c.column_name, c.data_type FROM information_schema.columns c"
        " JOIN information_schema.tables t USING (table_schema, table_name)"
        " WHERE c.table_schema = 'public' AND t.table_type = 'BASE TABLE'"
    ).fetchall()
    found = []
    for column in columns:
        name = f"{column['table_name']}.{column['column_name']}"
        query = f'SELECT "{column["column_name"]}" AS value FROM "{column["table_name"]}"'
        for row in owner.execute(query.encode()).fetchall():
            if canary in _as_text(row["value"]):
                found.append(name)
    return found


def _as_text(value: Any) -> str:
    if not isinstance(value, bytes):
        return str(value)
    try:
        return zlib.decompress(value).decode()
    except zlib.error:
        return value.decode(errors="replace")


def found_in_redis(client: redis.Redis, canary: str) -> list[str]:
    """Keys with the word in their name or value, read as what they are: a dump is compressed."""
    return [
        str(key)
        for key in client.scan_iter(count=1_000)
        if canary in str(key) or canary in str(_value(client, key))
    ]


def _value(client: redis.Redis, key: Any) -> Any:
    kind: Any = client.type(key)
    read: dict[str, Callable[[], Any]] = {
        "string": lambda: client.get(key),
        "stream": lambda: client.xrange(key),
        "hash": lambda: client.hgetall(key),
        "list": lambda: client.lrange(key, 0, -1),
        "set": lambda: client.smembers(key),
        "zset": lambda: client.zrange(key, 0, -1),
        "none": lambda: None,  # it has gone meanwhile
    }
    return read[kind.decode() if isinstance(kind, bytes) else kind]()


def found_on_disk(folder: Path, canary: str) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if canary.encode() in path.read_bytes()]
