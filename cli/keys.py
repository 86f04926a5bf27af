"""keys create, keys list, keys scopes, keys revoke."""

# ruff: noqa: PLC0415 (a command imports what it needs when it runs, so that `--help` is instant)

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from cli.errors import CommandError, MisuseError
from cli.output import JsonOption, print_json, print_table
from store.api_keys import ALL, Scope, shown_scopes, stored_scopes

MAX_DAYS = 36_500

app = typer.Typer(help="API keys of tenants.", no_args_is_help=True)


class OnDisconnect(StrEnum):
    """What a job does when its client leaves."""

    CONTINUE = "continue"
    CANCEL = "cancel"


def _known_scopes(values: list[str] | None) -> list[str] | None:
    """Of one option or several, apart by commas. Raises typer.BadParameter."""
    if not values:
        return None
    names = [name.strip() for value in values for name in value.split(",")]
    choices = (ALL, *Scope)
    if unknown := [name for name in names if name not in choices]:
        raise typer.BadParameter(f"{unknown[0]!r} is no scope: use {', '.join(choices)}")
    return names


ScopesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--scopes",
        "--scope",
        callback=_known_scopes,
        metavar="SCOPE,...",
        help=f"What it may do: {', '.join(Scope)}; or all, those of later releases too.",
    ),
]


@app.callback()
def _keys() -> None: ...


@app.command()
def create(
    tenant: Annotated[str, typer.Argument(help="The tenant's name.")],
    *,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "default",
    days: Annotated[int | None, typer.Option(min=1, max=MAX_DAYS, help="Until it expires.")] = None,
    on_disconnect: Annotated[
        OnDisconnect | None,
        typer.Option(help="What its jobs do when their client leaves, if they don't say."),
    ] = None,
    attach_retries: Annotated[
        bool,
        typer.Option(help="A library's retry without an idempotency key gets the first try's job."),
    ] = True,
    scopes: ScopesOption = None,
    is_json: JsonOption = False,
) -> None:
    """Create a key. It is printed once and stored nowhere."""
    from datetime import timedelta

    from cli.operator import connection, key_pepper, tenant_id
    from store import tenants

    pepper = key_pepper()
    with connection() as opened:
        ttl = timedelta(days=days) if days else None
        owner = tenant_id(opened, tenant)
        key = tenants.create_api_key(
            opened,
            tenant_id=owner,
            name=name,
            pepper=pepper,
            scopes=scopes or [ALL],
            ttl=ttl,
            on_disconnect=on_disconnect,
            attach_retries=attach_retries,
        )
    if is_json:
        print_json({"tenant": tenant, "name": name, "key": key})
    else:
        print(key)


@app.command("list")
def list_(
    tenant: Annotated[str, typer.Argument(help="The tenant's name.")],
    *,
    is_json: JsonOption = False,
) -> None:
    """List a tenant's keys, by their ids and last characters."""
    from dataclasses import asdict

    from cli.operator import connection, tenant_id
    from store import tenants

    with connection() as opened:
        keys = tenants.list_api_keys(opened, tenant_id(opened, tenant))
    if is_json:
        print_json([asdict(key) for key in keys])
        return
    print_table(
        (
            "id",
            "ends with",
            "name",
            "state",
            "created",
            "expires",
            "scopes",
            "on disconnect",
            "retries",
        ),
        [
            (
                key.key_id,
                key.last4,
                key.name,
                key.state,
                f"{key.created_at:%Y-%m-%d}",
                f"{key.expires_at:%Y-%m-%d}" if key.expires_at else "never",
                ", ".join(key.scopes),
                key.on_disconnect or "default",
                "attach" if key.attach_retries else "new jobs",
            )
            for key in keys
        ],
    )


@app.command("scopes")
def set_scopes(
    key_id: Annotated[str, typer.Argument(help="The part of the key after mlr_live_.")],
    *,
    scopes: ScopesOption = None,
    is_json: JsonOption = False,
) -> None:
    """Choose anew what a key may do, as when a release brought a scope. The API follows in 30 s."""
    from cli.operator import connection
    from store import tenants

    if scopes is None:
        raise MisuseError("say which by --scopes")
    with connection() as opened:
        if not tenants.set_scopes(opened, key_id, scopes):
            raise CommandError(f"there is no live key {key_id!r}")
    now = shown_scopes(stored_scopes(scopes))
    if is_json:
        print_json({"key_id": key_id, "scopes": now})
    else:
        print(f"{key_id} may: {', '.join(now)}")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The part of the key after mlr_live_.")],
    *,
    is_json: JsonOption = False,
) -> None:
    """End a key; the API refuses it within 30 s."""
    from cli.operator import connection
    from store import tenants

    with connection() as opened:
        if not tenants.revoke_api_key(opened, key_id):
            raise CommandError(f"there is no live key {key_id!r}")
    if is_json:
        print_json({"key_id": key_id, "is_revoked": True})
    else:
        print(f"revoked {key_id}")
