"""tenants create, tenants set-limits, tenants list, credits add."""

# ruff: noqa: PLC0415 (a command imports what it needs when it runs, so that `--help` is instant)

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.money import from_micros, to_micros
from cli.output import JsonOption, print_json, print_table

if TYPE_CHECKING:
    from store.tenants import OwnBatchQuota
    from tasks.limits import Limits

NO_LIMIT = "none"
INSTALLATIONS = "default"
MAX_BATCHES = 2**31 - 1  # what their columns hold
MAX_BYTES = 2**63 - 1

app = typer.Typer(help="Tenants and their accounts.", no_args_is_help=True)
credits_app = typer.Typer(help="Credit of tenants.", no_args_is_help=True)


RequestsOption = Annotated[
    str | None, typer.Option(help="Most requests a minute, or 'none'.", metavar="NUMBER")
]
TokensOption = Annotated[
    str | None,
    typer.Option(
        help="Most tokens a minute, input and the most a request may produce, or 'none'.",
        metavar="NUMBER",
    ),
]
BatchesOption = Annotated[
    str | None,
    typer.Option(help="Most batches that are not over, or 'default'.", metavar="NUMBER"),
]
BatchBytesOption = Annotated[
    str | None,
    typer.Option(help="Most bytes of their input files, or 'default'.", metavar="NUMBER"),
]


@app.callback()
def _tenants() -> None: ...


@credits_app.callback()
def _credits() -> None: ...


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Of your choice; no two have the same.")],
    *,
    credit: Annotated[str, typer.Option(help="First credit, like 25.00.")] = "0",
    requests_per_min: RequestsOption = None,
    tokens_per_min: TokensOption = None,
    max_batches: BatchesOption = None,
    max_batch_bytes: BatchBytesOption = None,
    is_json: JsonOption = False,
) -> None:
    """Create a tenant and its account."""
    from cli.errors import CommandError, MisuseError
    from cli.operator import connection
    from store import tenants
    from tasks.limits import Limits

    if not name.strip():
        raise MisuseError("a tenant needs a name")
    micros = to_micros(credit) if credit != "0" else 0
    limits = Limits(_limit(requests_per_min), _limit(tokens_per_min))
    quota = _quota(max_batches, max_batch_bytes, tenants.INSTALLATIONS)
    with connection() as opened:
        if tenants.find_tenant(opened, name) is not None:
            raise CommandError(f"there is a tenant {name!r} already")
        created = tenants.create_tenant(
            opened, name=name, credit_micros=micros, limits=limits, batches=quota
        )
    if is_json:
        print_json({"id": created, "name": name, "credit_micros": micros} | _shown(limits, quota))
    else:
        print(created)


@app.command("set-limits")
def set_limits(
    tenant: Annotated[str, typer.Argument(help="The tenant's name.")],
    *,
    requests_per_min: RequestsOption = None,
    tokens_per_min: TokensOption = None,
    max_batches: BatchesOption = None,
    max_batch_bytes: BatchBytesOption = None,
    is_json: JsonOption = False,
) -> None:
    """Change a tenant's rate limits, which the API follows within 30 s, and what it may have of
    batches. What is left out stays.
    """
    from cli.operator import connection, tenant_id
    from store import tenants
    from tasks.limits import Limits

    if {requests_per_min, tokens_per_min, max_batches, max_batch_bytes} == {None}:
        raise typer.BadParameter("give one at least, like --requests-per-min or --tokens-per-min")
    with connection() as opened, opened.transaction():
        found = tenant_id(opened, tenant)
        current = tenants.get_limits(opened, found)
        limits = Limits(
            _limit(requests_per_min, current.requests), _limit(tokens_per_min, current.tokens)
        )
        quota = _quota(max_batches, max_batch_bytes, tenants.get_batch_quota(opened, found))
        tenants.set_limits(opened, found, limits)
        tenants.set_batch_quota(opened, found, quota)
    if is_json:
        print_json({"id": found, "name": tenant} | _shown(limits, quota))
    else:
        print(
            f"{tenant} may make {_number(limits.requests)} requests"
            f" and take {_number(limits.tokens)} tokens a minute,"
            f" and have {_own(quota.max_batches)} batches of {_own(quota.max_bytes)} bytes"
        )


@app.command("list")
def list_(*, is_json: JsonOption = False) -> None:
    """List tenants with balance, reserved amount, rate limits and what they may have of batches."""
    from dataclasses import asdict

    from cli.operator import connection
    from store import tenants

    with connection() as opened:
        found = tenants.list_tenants(opened)
    if is_json:
        print_json([asdict(tenant) for tenant in found])
        return
    print_table(
        (
            "name",
            "id",
            "balance",
            "reserved",
            "currency",
            "requests/min",
            "tokens/min",
            "batches",
            "batch bytes",
            "tiers",
        ),
        [
            (
                tenant.name,
                tenant.id,
                from_micros(tenant.balance_micros),
                from_micros(tenant.held_micros),
                tenant.currency,
                _number(tenant.requests_per_min),
                _number(tenant.tokens_per_min),
                _own(tenant.max_batches),
                _own(tenant.max_batch_bytes),
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


def _limit(text: str | None, current: int | None = None) -> int | None:
    """A limit as an operator wrote it, or did not. Raises typer.BadParameter."""
    from tasks.limits import MAX_LIMIT

    if text is None:
        return current
    if text == NO_LIMIT:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and 1 <= int(text) <= MAX_LIMIT):
        raise typer.BadParameter(f"a limit is a number from 1 to {MAX_LIMIT}, or '{NO_LIMIT}'")
    return int(text)


def _quota(batches: str | None, num_bytes: str | None, current: OwnBatchQuota) -> OwnBatchQuota:
    """What an operator wrote; the current one's where nothing. Raises typer.BadParameter."""
    from store.tenants import OwnBatchQuota

    return OwnBatchQuota(
        _own_limit(batches, current.max_batches, MAX_BATCHES),
        _own_limit(num_bytes, current.max_bytes, MAX_BYTES),
    )


def _own_limit(text: str | None, current: int | None, most: int) -> int | None:
    if text is None:
        return current
    if text == INSTALLATIONS:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= most):
        raise typer.BadParameter(f"a limit is a number up to {most}, or '{INSTALLATIONS}'")
    return int(text)


def _shown(limits: Limits, quota: OwnBatchQuota) -> dict[str, int | None]:
    return {
        "requests_per_min": limits.requests,
        "tokens_per_min": limits.tokens,
        "max_batches": quota.max_batches,
        "max_batch_bytes": quota.max_bytes,
    }


def _number(limit: int | None) -> str:
    return "unlimited" if limit is None else f"{limit:,}"


def _own(limit: int | None) -> str:
    return INSTALLATIONS if limit is None else f"{limit:,}"
