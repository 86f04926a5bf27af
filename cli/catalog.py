"""catalog apply."""

# ruff: noqa: PLC0415 (a command imports what it needs when it runs, so that `--help` is instant)

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.output import JsonOption, print_json

app = typer.Typer(help="The models this installation serves, and their prices.")


@app.callback(no_args_is_help=True)
def _catalog() -> None: ...


@app.command()
def apply(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Default: catalog.toml of the installation.")
    ] = None,
    *,
    is_json: JsonOption = False,
) -> None:
    """Make the database say what the files say. Models in none of them retire."""
    from dataclasses import asdict

    from cli.catalog_checks import check_model
    from cli.operator import connection
    from cli.stack.files import ROOT
    from store.catalog import apply_catalog

    with connection() as opened:
        summary = apply_catalog(opened, files or [ROOT / "catalog.toml"], check=check_model)
    if is_json:
        print_json(asdict(summary))
        return
    print(f"models: {', '.join(summary.models)}")
    if summary.retired:
        print(f"retired: {', '.join(summary.retired)}")
    print(f"prices: version {summary.price_version}" + " (new)" * summary.is_new_price_version)
