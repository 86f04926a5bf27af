"""Postgres and Redis of somebody else: asked once before anything is started."""

from __future__ import annotations

import contextlib

import psycopg
import redis

from cli.stack.errors import StackError

_TIMEOUT_S = 5
_MIN_POSTGRES = 150000  # as Postgres counts versions


def check_postgres(url: str) -> None:
    """Raises StackError if it can't be reached or lacks what migrations need."""
    try:
        with psycopg.connect(url, connect_timeout=_TIMEOUT_S) as connection:
            version = connection.info.server_version
            row = connection.execute(
                "SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"
            ).fetchone()
    except psycopg.Error as error:
        raise StackError(_line("Postgres", "MILLRACE_DATABASE_URL", error)) from None
    if version < _MIN_POSTGRES:
        raise StackError("Postgres 15 or newer is needed, check MILLRACE_DATABASE_URL")
    if not (row and row[0]):
        raise StackError("the user of MILLRACE_DATABASE_URL needs CREATEROLE: the processes' roles")


def check_redis(url: str) -> None:
    """Raises StackError if it can't be reached."""
    try:
        with contextlib.closing(redis.Redis.from_url(url, socket_timeout=_TIMEOUT_S)) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        raise StackError(_line("Redis", "MILLRACE_REDIS_URL", error)) from None


def _line(what: str, variable: str, error: Exception) -> str:
    return f"{what} can't be used, check {variable}: {' '.join(str(error).split())}"
