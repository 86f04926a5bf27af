"""ledger verify."""

# ruff: noqa: PLC0415 (a command imports what it needs when it runs, so that `--help` is instant)

from __future__ import annotations

import typer

from cli.output import JsonOption

app = typer.Typer(help="The ledger.", no_args_is_help=True)


@app.callback()
def _ledger() -> None: ...


@app.command()
def verify(*, is_json: JsonOption = False) -> None:
    """Recompute every balance from the ledger. Exits with 1 if one rule is broken."""
    from billing.ledger import verify as recompute
    from cli.operator import connection

    with connection() as opened:
        report = recompute(opened)
    if is_json:
        print(report.to_json())
    else:
        for check in report.checks:
            print(f"{check.name}: {check.num_violations or 'ok'}")
            for example in check.examples:
                print(f"  {example}")
    if not report.ok:
        raise typer.Exit(1)
