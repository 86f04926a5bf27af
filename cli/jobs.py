"""submit, watch, get, cancel: thin over the typed client, as any other user of the API."""

# ruff: noqa: PLC0415 (a command imports what it needs when it runs, so that `--help` is instant)

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from cli.errors import CommandError

if TYPE_CHECKING:
    from millrace import Client

JobId = Annotated[str, typer.Argument(help="job_...")]


def register(app: typer.Typer) -> None:
    app.command()(submit)
    app.command()(watch)
    app.command()(get)
    app.command()(cancel)


def submit(
    prompt: str,
    *,
    model: Annotated[str, typer.Option()] = "demo",
    max_tokens: Annotated[int, typer.Option(min=1)] = 256,
    follow: Annotated[bool, typer.Option(help="Print the text as it is produced.")] = True,
) -> None:
    """Send a prompt and print the answer as it streams (--no-follow: only the job's id)."""
    client = _client()
    job = client.jobs.create(
        model=model, messages=[{"role": "user", "content": prompt}], max_tokens=max_tokens
    )
    if not follow:
        print(job.id)
        return
    _follow(client, str(job.id))


def watch(job_id: JobId) -> None:
    """Print a job's text from its beginning and follow it to its end."""
    _follow(_client(), job_id)


def get(job_id: JobId) -> None:
    """Print a job as JSON."""
    import json

    print(json.dumps(_client().jobs.get(job_id).raw, indent=2))


def cancel(job_id: JobId) -> None:
    """Cancel a job."""
    print(_client().jobs.cancel(job_id).status)


def _follow(client: Client, job_id: str) -> None:
    """Exits with 1 if the job fails."""
    status = None
    for event in client.jobs.events(job_id):
        print(event.text, end="", flush=True)
        status = event.job.status if event.job else None
    print()
    if status not in ("completed", "incomplete"):
        raise CommandError(f"job {job_id} is {status}")


def _client() -> Client:
    """MILLRACE_URL and MILLRACE_API_KEY, else those of this machine's `make up`."""
    url, key = os.environ.get("MILLRACE_URL"), os.environ.get("MILLRACE_API_KEY")
    if not (url and key):
        from cli.stack.state import StateFolder

        state = StateFolder.default()
        running = state.read_running()
        url = url or (running.addresses.get("api") if running else None)
        key = key or state.find_secret("api_key")
    if not (url and key):
        raise CommandError("set MILLRACE_URL and MILLRACE_API_KEY, or start Millrace by `make up`")
    from millrace import Client

    return Client(url=url, api_key=key)
