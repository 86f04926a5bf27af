"""up, down, status, migrate: the processes of this machine."""

# ruff: noqa: PLC0415 (a command imports what it needs when it runs, so that `--help` is instant)

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from cli.help_texts import THIS_MACHINE, examples
from cli.output import JsonOption, print_json

_UP = examples("millrace up --detach", "millrace up --model /models/llama-3.2-1b --dtype int8")


class Engine(StrEnum):
    """What inference workers run. The last two are for measuring and testing."""

    MILLRACE = "millrace"
    TRANSFORMERS = "transformers-cb"
    STUB = "stub"


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=THIS_MACHINE, epilog=_UP)(up)
    app.command(rich_help_panel=THIS_MACHINE)(down)
    app.command(rich_help_panel=THIS_MACHINE)(status)


def up(
    *,
    detach: Annotated[
        bool, typer.Option(help="Return when all is ready, instead of staying.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Serve this model too: a folder or a Hugging Face hub id.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of its weights: auto (the default), fp32, bf16, fp16, int8 or nf4."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(envvar="MILLRACE_DEVICE", help="auto (the default), cpu or cuda:0."),
    ] = None,
    engine: Annotated[
        Engine | None,
        typer.Option(
            envvar="MILLRACE_ENGINE",
            help="Default: millrace. The other two are for comparing and testing.",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Of the API. Default: 8000 or the next that is free."),
    ] = None,
    is_json: JsonOption = False,
) -> None:
    """Start everything on this machine, answer a first prompt, and stay until Ctrl-C."""
    from cli.stack.up import up as start

    options = {"port": port, "model": model, "dtype": dtype, "device": device}
    options["engine"] = engine.value if engine else None
    asked = {name: value for name, value in options.items() if value is not None}
    start(asked, detach=detach, is_json=is_json)


def down(
    *,
    purge: Annotated[
        bool, typer.Option(help="Also delete all data: jobs, keys, the ledger.")
    ] = False,
    is_json: JsonOption = False,
) -> None:
    """Stop what `up` started: running jobs finish or go back to the queue."""
    from contextlib import closing

    from cli.stack.console import Progress, standard_console
    from cli.stack.down import down as stop
    from cli.stack.state import StateFolder

    with closing(Progress(standard_console(is_json=is_json))) as progress:
        stop(StateFolder.default(), progress, purge=purge)
    if is_json:
        print_json({"is_running": False})


def status(*, is_json: JsonOption = False) -> None:
    """Show processes, queues, workers and jobs. Exits with 1 if Millrace doesn't run."""
    import json

    from cli.stack import status as report
    from cli.stack.console import standard_console
    from cli.stack.state import StateFolder

    found = report.collect(StateFolder.default())
    if is_json:
        print(json.dumps(found))
    else:
        report.show(found, standard_console(is_json=False))
    if not found["is_running"]:
        raise typer.Exit(1)


def migrate(*, is_json: JsonOption = False) -> None:
    """Bring the database up to this version's schema."""
    from cli.operator import owner_url
    from store.migrate import upgrade

    upgrade(owner_url())
    if is_json:
        print_json({"is_up_to_date": True})
    else:
        print("the database is up to date")
