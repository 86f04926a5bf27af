"""The `millrace` command. Each command imports what it needs when it runs: `--help` is instant."""

from __future__ import annotations

import sys

import typer

from cli import account, batches, catalog, chat, files, jobs, keys, ledger, stack_commands, tenants
from cli.errors import one_line_errors

app = typer.Typer(
    name="millrace",
    help="Millrace: a multi-tenant LLM inference platform.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

stack_commands.register(app)
chat.register(app)
jobs.register(app)
app.add_typer(batches.app, name="batch")
account.register(app)
app.add_typer(files.app, name="files")
app.add_typer(tenants.app, name="tenants")
app.add_typer(keys.app, name="keys")
app.add_typer(tenants.credits_app, name="credits")
app.add_typer(catalog.app, name="catalog")
app.add_typer(ledger.app, name="ledger")


def run() -> None:
    """The entry point."""
    with one_line_errors():
        sys.exit(app(standalone_mode=False))


if __name__ == "__main__":
    run()
