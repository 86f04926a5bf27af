"""The login roles of the processes. Migrations create them without login; this gives passwords."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, urlsplit, urlunsplit

from psycopg import sql

from store.pools import connect

ROLES = ("millrace_api", "millrace_worker", "millrace_billing")


def ensure_roles(owner_url: str, passwords: Mapping[str, str]) -> None:
    """Let each role log in with its password. Idempotent. The owner must have made the roles."""
    with connect(owner_url, application_name="millrace-roles") as connection:
        for role in ROLES:
            connection.execute(
                sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(
                    sql.Identifier(role), sql.Literal(passwords[role])
                )
            )


def url_as(url: str, role: str, password: str) -> str:
    """The same database under another role."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    netloc = f"{quote(role, safe='')}:{quote(password, safe='')}@{host}"
    return urlunsplit(parts._replace(netloc=netloc))
