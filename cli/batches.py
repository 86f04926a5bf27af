"""batch run, list, get, cancel."""

# ruff: noqa: PLC0415 (a command imports what it needs when it runs, so that `--help` is instant)

from __future__ import annotations

import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.client import connect
from cli.errors import INTERRUPTED, CommandError
from cli.help_texts import examples
from cli.output import JsonOption, moment, print_json, print_table

if TYPE_CHECKING:
    from millrace import Batch, BatchProgress

app = typer.Typer(help="Batches: many requests in one file.", no_args_is_help=True)

_REQUEST = (
    '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions",'
    ' "body": {"model": "demo", "messages": [{"role": "user", "content": "What is a lease?"}]}}'
)
_EXAMPLES = examples("millrace batch run requests.jsonl --window 1h", f"A request: {_REQUEST}")


_WINDOW = re.compile(r"([1-9][0-9]{0,4})([mhd])")
_UNITS_S = {"m": 60, "h": 3_600, "d": 86_400}


class Endpoint(StrEnum):
    """What the lines of a batch may ask for."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    RESPONSES = "/v1/responses"


def _window(text: str) -> str:
    """Refuse what is no time before a large file is uploaded. Raises typer.BadParameter."""
    found = _WINDOW.fullmatch(text)
    if found is None or not 300 <= int(found[1]) * _UNITS_S[found[2]] <= 7 * _UNITS_S["d"]:
        raise typer.BadParameter("a number of minutes, hours or days from 5m to 7d, such as 24h")
    return text


BatchId = Annotated[str, typer.Argument(help="As `batch list` shows it: batch_...")]


@app.command(epilog=_EXAMPLES)
def run(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="One request a line, as JSON.")],
    *,
    output: Annotated[
        Path | None, typer.Option(help="For answers. Default: FILE.out.jsonl.")
    ] = None,
    errors: Annotated[
        Path | None, typer.Option(help="For requests that failed. Default: FILE.err.jsonl.")
    ] = None,
    endpoint: Annotated[Endpoint, typer.Option(help="The `url` of every request.")] = Endpoint.CHAT,
    window: Annotated[
        str,
        typer.Option(
            callback=_window, help="How long it may take, from 5m to 7d; longer is cheaper."
        ),
    ] = "24h",
    starts_over: Annotated[
        bool,
        typer.Option("--new", help="Start a new batch, and delete the results of an earlier one."),
    ] = False,
    is_json: JsonOption = False,
) -> None:
    """Upload a file, run it as a batch, and write results as they come.

    Ctrl-C stops the waiting, not the batch: the same command again takes it up.
    """
    from cli.progress import batch_progress

    batch_id: str | None = None

    def progress(now: BatchProgress) -> None:
        nonlocal batch_id
        batch_id = now.batch.id if now.batch else None
        show(now)

    try:
        with connect() as client, batch_progress() as show:
            batch = client.batches.run(
                path,
                output=output,
                errors=errors,
                endpoint=endpoint,
                completion_window=window,
                starts_over=starts_over,
                progress=progress,
            )
    except KeyboardInterrupt:
        print(f"millrace: {_how_to_go_on(batch_id)}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if is_json:
        print_json(batch.raw)
    else:
        counts = batch.request_counts
        print(f"{batch.id} {batch.status}: {counts.completed} of {counts.total} completed")
    _require_success(batch, errors or Path(f"{path}.err.jsonl"))


@app.command("list")
def list_(
    *,
    after: Annotated[
        str | None, typer.Option(help="Older ones than this id, the last of the page before.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    is_json: JsonOption = False,
) -> None:
    """List batches, newest first."""
    with connect() as client:
        page = client.batches.list(after=after, limit=limit)
    if is_json:
        print_json([batch.raw for batch in page.data])
    else:
        _show(page.data)
        for batch in page.data:
            if batch.waits_for:
                print(f"{batch.id} waits: {batch.waits_for}")
        if page.has_more:
            print(f"more: --after {page.last_id}")


@app.command()
def get(batch_id: BatchId, *, is_json: JsonOption = False) -> None:
    """Show a batch."""
    with connect() as client:
        batch = client.batches.get(batch_id)
    if is_json:
        print_json(batch.raw)
        return
    _show((batch,))
    if batch.waits_for:
        print(f"waits: {batch.waits_for}")
    for error in batch.errors:
        print(f"line {error.get('line')}: {error.get('code')}: {error.get('message')}")
    for name, file_id in (("output", batch.output_file_id), ("errors", batch.error_file_id)):
        if file_id:
            print(f"{name}: {file_id}")


@app.command()
def cancel(batch_id: BatchId, *, is_json: JsonOption = False) -> None:
    """Cancel a batch. What is done is kept, and paid for."""
    with connect() as client:
        batch = client.batches.cancel(batch_id)
    if is_json:
        print_json(batch.raw)
    else:
        print(batch.status)


def _show(batches: tuple[Batch, ...]) -> None:
    print_table(
        ("id", "status", "total", "completed", "failed", "created"),
        [
            (
                batch.id,
                batch.status,
                batch.request_counts.total,
                batch.request_counts.completed,
                batch.request_counts.failed,
                moment(batch.created_at),
            )
            for batch in batches
        ],
    )


def _how_to_go_on(batch_id: str | None) -> str:
    if batch_id is None:
        return "interrupted; the same command goes on from here"
    return (
        f"{batch_id} goes on without you: the same command takes it up again,"
        f" `millrace batch cancel {batch_id}` ends it"
    )


def _require_success(batch: Batch, errors: Path) -> None:
    if batch.errors:
        first = batch.errors[0]
        where = f" (line {first['line']})" if first.get("line") else ""
        raise CommandError(f"batch {batch.id} {batch.status}: {first.get('message')}{where}")
    if batch.status != "completed":
        raise CommandError(f"batch {batch.id} {batch.status}")
    if batch.request_counts.failed:
        raise CommandError(f"{batch.request_counts.failed} requests failed: see {errors}")
