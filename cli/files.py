"""files list, upload, download, delete."""

# ruff: noqa: PLC0415 (a command imports what it needs when it runs, so that `--help` is instant)

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.client import connect
from cli.errors import CommandError
from cli.output import JsonOption, moment, print_json, print_table

app = typer.Typer(help="Files: inputs and results of batches.", no_args_is_help=True)


class Purpose(StrEnum):
    """What a file is for."""

    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"
    USER_DATA = "user_data"


class UploadPurpose(StrEnum):
    """Of those the ones to upload for."""

    BATCH = "batch"
    USER_DATA = "user_data"


FileId = Annotated[str, typer.Argument(help="As `files list` shows it: file-...")]


@app.command("list")
def list_(
    *,
    purpose: Annotated[Purpose | None, typer.Option(help="Those alone.")] = None,
    after: Annotated[
        str | None, typer.Option(help="Older ones than this id, the last of the page before.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 100,
    is_json: JsonOption = False,
) -> None:
    """List files, newest first."""
    with connect() as client:
        page = client.files.list(purpose=purpose, after=after, limit=limit)
    if is_json:
        print_json([file.raw for file in page.data])
        return
    print_table(
        ("id", "name", "bytes", "purpose", "created"),
        [(f.id, f.filename, f.bytes, f.purpose, moment(f.created_at)) for f in page.data],
    )
    if page.has_more:
        print(f"more: --after {page.last_id}")


@app.command()
def upload(
    path: Annotated[Path, typer.Argument(help="What to store.")],
    *,
    purpose: Annotated[
        UploadPurpose, typer.Option(help="batch is for requests, as JSON lines.")
    ] = UploadPurpose.BATCH,
    is_json: JsonOption = False,
) -> None:
    """Store a file and print its id."""
    from cli.progress import bytes_progress

    with connect() as client, bytes_progress("upload") as progress:
        file = client.files.upload(path, purpose=purpose, progress=progress)
    if is_json:
        print_json(file.raw)
    else:
        print(file.id)


@app.command()
def download(
    file_id: FileId,
    path: Annotated[
        Path | None, typer.Argument(help="Where to. Default: the file's own name.")
    ] = None,
    *,
    is_forced: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    is_json: JsonOption = False,
) -> None:
    """Write a file's contents to disk. The file appears there when it is whole."""
    from cli.progress import bytes_progress

    with connect() as client:
        # A name is what somebody chose at the upload: never a path.
        target = path or Path(Path(client.files.get(file_id).filename).name or file_id)
        if target.exists() and not is_forced:
            raise CommandError(f"{target} exists: name another path, or pass --force")
        with bytes_progress("download") as progress:
            client.files.download(file_id, target, progress=progress)
    if is_json:
        print_json({"id": file_id, "path": str(target), "bytes": target.stat().st_size})
    else:
        print(target)


@app.command()
def delete(file_id: FileId, *, is_json: JsonOption = False) -> None:
    """Delete a file."""
    with connect() as client:
        is_deleted = client.files.delete(file_id)
    if is_json:
        print_json({"id": file_id, "deleted": is_deleted})
    else:
        print(f"deleted {file_id}")
