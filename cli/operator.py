"""What operator commands share: the owner's connection, the pepper, tenants by name."""

# ruff: noqa: PLC0415 (a command imports what it needs when it runs, so that `--help` is instant)

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import UUID

from cli.errors import CommandError

if TYPE_CHECKING:
    from store.pools import DictConnection


def owner_url() -> str:
    """MILLRACE_DATABASE_URL, else the embedded Postgres of `make up`."""
    from cli.stack.addresses import owner_url as find
    from cli.stack.state import StateFolder

    return find(StateFolder.default())


@contextmanager
def connection() -> Iterator[DictConnection]:
    """As the owner. Autocommit."""
    from store.pools import connect

    with connect(owner_url(), application_name="millrace-cli") as opened:
        yield opened


def key_pepper() -> bytes:
    """MILLRACE_KEY_PEPPER, else the one `make up` generated."""
    from cli.stack.state import StateFolder

    pepper = os.environ.get("MILLRACE_KEY_PEPPER") or StateFolder.default().find_secret(
        "key_pepper"
    )
    if pepper is None:
        raise CommandError("no pepper for key hashes: set MILLRACE_KEY_PEPPER to the API's")
    return pepper.encode()


def tenant_id(opened: DictConnection, name: str) -> UUID:
    """The tenant of this name."""
    from store import tenants

    found = tenants.find_tenant(opened, name)
    if found is None:
        raise CommandError(f"there is no tenant {name!r}: see `millrace tenants list`")
    return found
