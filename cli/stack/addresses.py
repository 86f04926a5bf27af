"""Where this machine's Postgres and Redis are, for commands that run beside the stack."""

from __future__ import annotations

import os

from cli.stack.errors import StackError
from cli.stack.postgres import EmbeddedPostgres
from cli.stack.redis import EmbeddedRedis
from cli.stack.state import StateFolder

_HINT = "start Millrace with `make up`, or set {}"


def owner_url(state: StateFolder) -> str:
    """MILLRACE_DATABASE_URL, else the embedded Postgres if it runs. Raises StackError."""
    if url := os.environ.get("MILLRACE_DATABASE_URL"):
        return url
    postgres = EmbeddedPostgres(state.path)
    if postgres.find() is None:
        raise StackError("no Postgres runs here: " + _HINT.format("MILLRACE_DATABASE_URL"))
    return postgres.url()


def broker_url(state: StateFolder) -> str:
    """MILLRACE_BROKER_URL or MILLRACE_REDIS_URL, else the embedded Redis if it runs."""
    for name in ("MILLRACE_BROKER_URL", "MILLRACE_REDIS_URL"):
        if url := os.environ.get(name):
            return url
    redis = EmbeddedRedis(state.path)
    if redis.find() is None:
        raise StackError("no Redis runs here: " + _HINT.format("MILLRACE_REDIS_URL"))
    return redis.url
