"""tenants create, tenants list, credits add."""

# ruff: noqa: PLC0415 (a command imports what it needs when it runs, so that `--help` is instant)

from __future__ import annotations

from typing import Annotated

import typer

from cli.money import from_micros, to_micros
from cli.output import JsonOption, print_json, print_table

app = typer.Typer(help="Tenants and their accounts.", no_args_is_help=True)
credits_app = typer.Typer(help="Credit of tenants.", no_args_is_help=True)


@app.callback()
def _tenants() -> None: ...


@credits_app.callback()
def _credits() -> None: ...


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Of your choice; no two have the same.")],
    *,
    credit: Annotated[str, typer.Option(help="First credit, like 25.00.")] = "0",
    is_json: JsonOption = False,
) -> None:
    """Create a tenant and its account."""
    from cli.errors import CommandError
    from cli.operator import connection
    from store import tenants

    micros = to_micros(credit) if credit != "0" else 0
    with connection() as opened:
        if tenants.find_tenant(opened, name) is not None:
            raise CommandError(f"there is a tenant {name!r} already")
        created = tenants.create_tenant(opened, name=name, credit_micros=micros)
    if is_json:
        print_json({"id": created, "name": name, "credit_micros": micros})
    else:
        print(created)


@app.command("list")
def list_(*, is_json: JsonOption = False) -> None:
    """List tenants with balance and reserved amount."""
    from dataclasses import asdict

    from cli.operator import connection
    from store import tenants

    with connection() as opened:
        found = tenants.list_tenants(opened)
    if is_json:
        print_json([asdict(tenant) for tenant in found])
        return
    print_table(
        ("name", "id", "balance", "reserved", "currency", "tiers"),
        [
            (
                tenant.name,
                tenant.id,
                from_micros(tenant.balance_micros),
                from_micros(tenant.held_micros),
                tenant.currency,
                ", ".join(tenant.tiers),
            )
            for tenant in found
        ],
    )


@credits_app.command()
def add(
    tenant: Annotated[str, typer.Argument(help="The tenant's name.")],
    amount: Annotated[str, typer.Argument(help="Like 25.00.")],
    *,
    reference: Annotated[
        str, typer.Option(help="Of the payment. The same reference twice counts once.")
    ],
    is_json: JsonOption = False,
) -> None:
    """Add credit to a tenant's account."""
    from billing.ledger import top_up
    from cli.operator import connection, tenant_id

    micros = to_micros(amount)
    with connection() as opened:
        entry = top_up(opened, tenant_id(opened, tenant), micros, reference)
    if is_json:
        print_json({"tenant": tenant, "amount_micros": entry.amount_micros, "reference": reference})
    else:
        print(f"{tenant} was credited {from_micros(entry.amount_micros)} {entry.currency}")
