"""A row that nobody can change, or delete: what one unit of work looks like that always fails."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from psycopg import sql

from store.pools import DictConnection


def refuse(
    owner: DictConnection,
    table: str,
    column: str,
    value: UUID | str,
    *,
    name: str = "refuse",
    event: Literal["UPDATE", "DELETE"] = "UPDATE",
) -> None:
    """Have every change of these rows raise, and with it the statement it is part of."""
    names = {
        "event": sql.SQL(event),
        "table": sql.Identifier(table),
        "column": sql.Identifier(column),
        "name": sql.Identifier(name),
    }
    owner.execute(
        sql.SQL(
            "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'refused'; END $$"
        )
    )
    owner.execute(
        sql.SQL(
            "CREATE TRIGGER {name} BEFORE {event} ON {table} FOR EACH ROW"
            " WHEN (OLD.{column} = {value}) EXECUTE FUNCTION refuse()"
        ).format(**names, value=sql.Literal(value))
    )
