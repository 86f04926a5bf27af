"""Bringing a database up to date, and the URL under which each process connects."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from store.roles import ensure_roles, url_as

_VARIABLES = {
    "api": "MILLRACE_DATABASE_URL_API",
    "worker": "MILLRACE_DATABASE_URL_WORKER",
    "billing": "MILLRACE_DATABASE_URL_BILLING",
}
OWNER_VARIABLE = "MILLRACE_DATABASE_URL"


@dataclass(frozen=True, slots=True)
class DatabaseUrls:
    """One URL a role. The owner's is for migrations and operator commands alone."""

    owner: str
    api: str
    worker: str
    billing: str

    @classmethod
    def with_passwords(cls, owner_url: str, passwords: Mapping[str, str]) -> DatabaseUrls:
        """The same database under each role, by the passwords of `new_passwords`."""
        urls = {name: url_as(owner_url, role, passwords[role]) for name, role in _roles().items()}
        return cls(owner=owner_url, **urls)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> DatabaseUrls | None:
        """An external Postgres whose roles somebody else set up; None unless all are named."""
        names = (OWNER_VARIABLE, *_VARIABLES.values())
        if not all(environment.get(name) for name in names):
            return None
        return cls(*(environment[name] for name in names))


def new_passwords() -> dict[str, str]:
    """A password for each role a process connects as."""
    return {role: secrets.token_urlsafe(24) for role in _roles().values()}


def role_environment(urls: DatabaseUrls, role: str) -> dict[str, str]:
    """What a process of one role is told: its own URL, under the name its role reads.

    The common name is set too, since settings fall back to it; the owner's URL is never passed.
    """
    url = str(getattr(urls, role))
    return {OWNER_VARIABLE: url, _VARIABLES[role]: url}


def prepare(urls: DatabaseUrls, passwords: Mapping[str, str] | None) -> None:
    """Migrate, and let the roles log in. Safe to call twice and from several processes.

    passwords=None: the roles' passwords are somebody else's business.
    """
    from store.migrate import upgrade  # noqa: PLC0415 (Alembic and SQLAlchemy: slow to import)

    upgrade(urls.owner)
    if passwords is not None:
        ensure_roles(urls.owner, passwords)


def _roles() -> dict[str, str]:
    return {name: f"millrace_{name}" for name in _VARIABLES}
