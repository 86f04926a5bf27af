"""tenants create, tenants list, credits add."""

# ruff: noqa: PLC0415 (a command imports what it needs when it runs, so that `--help` is instant)

from __future__ import annotations

import sys
from typing import Annotated

import typer

app = typer.Typer(help="Tenants and their accounts.", no_args_is_help=True)
credits_app = typer.Typer(help="Credit of tenants.", no_args_is_help=True)


@app.callback()
def _tenants() -> None: ...


@credits_app.callback()
def _credits() -> None: ...


@app.command()
def create(
    name: str,
    *,
    credit: Annotated[str, typer.Option(help="First credit, like 25.00.")] = "0",
) -> None:
    """Create a tenant and its account."""
    from cli.errors import CommandError
    from cli.operator import connection, to_micros
    from store import tenants

    micros = to_micros(credit) if credit != "0" else 0
    with connection() as opened:
        if tenants.find_tenant(opened, name) is not None:
            raise CommandError(f"there is a tenant {name!r} already")
        print(tenants.create_tenant(opened, name=name, credit_micros=micros))


@app.command("list")
def list_() -> None:
    """List tenants with balance and reserved amount."""
    from rich.console import Console
    from rich.table import Table

    from cli.operator import connection, from_micros
    from store import tenants

    table = Table("name", "id", "balance", "reserved", "currency", "tiers", box=None)
    with connection() as opened:
        for tenant in tenants.list_tenants(opened):
            amounts = from_micros(tenant.balance_micros), from_micros(tenant.held_micros)
            tiers = ", ".join(tenant.tiers)
            table.add_row(tenant.name, str(tenant.id), *amounts, tenant.currency, tiers)
    # A pipe gets whole lines, however narrow the terminal behind it.
    Console(width=None if sys.stdout.isatty() else 500).print(table)


@credits_app.command()
def add(
    tenant: Annotated[str, typer.Argument(help="The tenant's name.")],
    amount: Annotated[str, typer.Argument(help="Like 25.00.")],
    *,
    reference: Annotated[
        str, typer.Option(help="Of the payment. The same reference twice counts once.")
    ],
) -> None:
    """Add credit to a tenant's account."""
    from billing.ledger import top_up
    from cli.operator import connection, from_micros, tenant_id, to_micros

    micros = to_micros(amount)
    with connection() as opened:
        entry = top_up(opened, tenant_id(opened, tenant), micros, reference)
    print(f"{tenant} was credited {from_micros(entry.amount_micros)} {entry.currency}")
