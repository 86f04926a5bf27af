"""The `millrace` command. Each command imports what it needs when it runs: `--help` is instant."""

from __future__ import annotations

import sys

import typer

from cli import account, batches, catalog, chat, files, jobs, keys, ledger, stack_commands, tenants
from cli.errors import one_line_errors
from cli.help_texts import FILES, MAIN, OPERATORS

app = typer.Typer(
    name="millrace",
    help="Millrace: a multi-tenant LLM inference platform.",
    epilog=MAIN,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

stack_commands.register(app)
chat.register(app)
jobs.register(app)
account.register(app)
app.add_typer(batches.app, name="batch", rich_help_panel=FILES)
app.add_typer(files.app, name="files", rich_help_panel=FILES)
app.command(rich_help_panel=OPERATORS)(stack_commands.migrate)
app.add_typer(tenants.app, name="tenants", rich_help_panel=OPERATORS)
app.add_typer(keys.app, name="keys", rich_help_panel=OPERATORS)
app.add_typer(tenants.credits_app, name="credits", rich_help_panel=OPERATORS)
app.add_typer(catalog.app, name="catalog", rich_help_panel=OPERATORS)
app.add_typer(ledger.app, name="ledger", rich_help_panel=OPERATORS)


def run() -> None:
    """The entry point."""
    with one_line_errors():
        sys.exit(app(standalone_mode=False, prog_name="millrace"))


if __name__ == "__main__":
    run()
