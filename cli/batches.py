"""batch run, list, get, cancel."""

# ruff: noqa: PLC0415 (a command imports what it needs when it runs, so that `--help` is instant)

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.client import connect
from cli.errors import INTERRUPTED, CommandError
from cli.output import JsonOption, moment, print_json, print_table

if TYPE_CHECKING:
    from millrace import Batch, BatchProgress

app = typer.Typer(help="Batches: many requests in one file.", no_args_is_help=True)

BatchId = Annotated[str, typer.Argument(help="batch_...")]


@app.command()
def run(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL, one request a line.")],
    *,
    output: Annotated[Path | None, typer.Option(help="Default: FILE.out.jsonl.")] = None,
    errors: Annotated[Path | None, typer.Option(help="Default: FILE.err.jsonl.")] = None,
    endpoint: Annotated[str, typer.Option(help="Of all requests.")] = "/v1/chat/completions",
    window: Annotated[str, typer.Option(help="When it is to be done.")] = "24h",
    starts_over: Annotated[
        bool, typer.Option("--new", help="Start a new batch and delete earlier results.")
    ] = False,
    is_json: JsonOption = False,
) -> None:
    """Upload a file, run it as a batch, and write results as they come.

    Ctrl-C stops the waiting, not the batch: the same command again takes it up.
    """
    with connect() as client, _progress_bar() as progress:
        try:
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
            print("millrace: the same command takes the batch up again", file=sys.stderr)
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
    after: Annotated[str | None, typer.Option(help="The last id of the page before.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    is_json: JsonOption = False,
) -> None:
    """List batches, newest first."""
    with connect() as client:
        page = client.batches.list(after=after, limit=limit)
    if is_json:
        print_json([batch.raw for batch in page.data])
    else:
        _show(page.data)
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


def _require_success(batch: Batch, errors: Path) -> None:
    if batch.errors:
        first = batch.errors[0]
        where = f" (line {first['line']})" if first.get("line") else ""
        raise CommandError(f"batch {batch.id} is {batch.status}: {first.get('message')}{where}")
    if batch.status != "completed":
        raise CommandError(f"batch {batch.id} is {batch.status}")
    if batch.request_counts.failed:
        raise CommandError(f"{batch.request_counts.failed} requests failed: see {errors}")


@contextmanager
def _progress_bar() -> Iterator[Callable[[BatchProgress], None]]:
    """On stderr: upload, then counts and the time left; nothing where it is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        upload = bar.add_task("upload", total=None)
        lines = bar.add_task("", total=None, visible=False)

        def show(now: BatchProgress) -> None:
            if now.batch is None:
                bar.update(upload, completed=now.bytes_sent, total=now.bytes_total)
                return
            bar.update(upload, visible=False)
            counts = now.batch.request_counts
            failed = f", {counts.failed} failed" if counts.failed else ""
            bar.update(
                lines,
                description=f"{now.batch.status}{failed}",
                completed=counts.ended,
                total=counts.total or None,
                visible=True,
            )

        yield show
