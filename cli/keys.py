"""keys create, keys revoke."""

# ruff: noqa: PLC0415 (a command imports what it needs when it runs, so that `--help` is instant)

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="API keys of tenants.", no_args_is_help=True)


@app.callback()
def _keys() -> None: ...


@app.command()
def create(
    tenant: Annotated[str, typer.Argument(help="The tenant's name.")],
    *,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "default",
    days: Annotated[int | None, typer.Option(min=1, help="Until it expires.")] = None,
) -> None:
    """Create a key. It is printed once and stored nowhere."""
    from datetime import timedelta

    from cli.operator import connection, key_pepper, tenant_id
    from store import tenants

    pepper = key_pepper()
    with connection() as opened:
        ttl = timedelta(days=days) if days else None
        owner = tenant_id(opened, tenant)
        key = tenants.create_api_key(opened, tenant_id=owner, name=name, pepper=pepper, ttl=ttl)
    print(key)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The part of the key after mlr_live_.")],
) -> None:
    """End a key; the API refuses it within 30 s."""
    from cli.errors import CommandError
    from cli.operator import connection
    from store import tenants

    with connection() as opened:
        if not tenants.revoke_api_key(opened, key_id):
            raise CommandError(f"there is no live key {key_id!r}")
    print(f"revoked {key_id}")
