"""ledger verify."""

# ruff: noqa: PLC0415 (a command imports what it needs when it runs, so that `--help` is instant)

from __future__ import annotations

import typer

app = typer.Typer(help="The ledger.", no_args_is_help=True)


@app.callback()
def _ledger() -> None: ...


@app.command()
def verify() -> None:
    """Recompute every balance from the ledger. Exits with 1 if one differs."""
    from billing.ledger import verify as recompute
    from cli.operator import connection

    with connection() as opened:
        problems = recompute(opened)
    for problem in problems:
        print(problem)
    if problems:
        raise typer.Exit(1)
    print("the ledger is consistent")
