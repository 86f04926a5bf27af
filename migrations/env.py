"""Runs migrations as the owner role, one process at a time, never waiting long for a lock.

A migration must work with the release before it: add first, backfill, drop a release later.
"""

from __future__ import annotations

import re

from alembic import context
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from store import batch_tables as batch_tables  # these put their tables into the metadata
from store import file_tables as file_tables
from store import webhook_tables as webhook_tables
from store.schema import metadata, sqlalchemy_url
from store.settings import DatabaseSettings

ADVISORY_LOCK = 0x6D696C6C  # "mill": two migrations at once would race
LOCK_TIMEOUT = "4s"  # a migration that waits for a lock blocks every query behind it
STATEMENT_TIMEOUT = "5min"
PARTITION = re.compile(r"_(p\d{6}|default)$")


def include_name(name: str | None, type_: str, _parents: object) -> bool:
    """Partitions are made by ensure_partitions(), not declared."""
    return type_ != "table" or name is None or PARTITION.search(name) is None


def run() -> None:
    """Apply migrations over one connection."""
    url = context.config.get_main_option("sqlalchemy.url") or DatabaseSettings().owner
    engine = create_engine(sqlalchemy_url(url), poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
        connection.execute(text(f"SET statement_timeout = '{STATEMENT_TIMEOUT}'"))
        context.configure(
            connection=connection,
            target_metadata=metadata,
            include_name=include_name,
            transaction_per_migration=True,
        )
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
        connection.commit()
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()


run()
