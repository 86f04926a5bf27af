"""submit, watch, get, cancel, delete: thin over the typed client, as any other user of the API."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.client import (
    DEFAULT_MODEL,
    JobId,
    MaxTokensOption,
    MessagesOption,
    ModelOption,
    PromptArgument,
    TemperatureOption,
    TierOption,
    connect,
    job_params,
)
from cli.help_texts import JOBS, examples
from cli.money import from_micros
from cli.output import JsonOption, print_json
from cli.text_output import follow, require_success

_EXAMPLES = examples(
    'millrace submit "What is a lease?"',
    'millrace submit "What is a lease?" --follow --tier priority',
    "millrace submit --messages conversation.json --max-tokens 200",
)


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=JOBS, epilog=_EXAMPLES)(submit)
    app.command(rich_help_panel=JOBS)(watch)
    app.command(rich_help_panel=JOBS)(get)
    app.command(rich_help_panel=JOBS)(cancel)
    app.command(rich_help_panel=JOBS)(delete)


def submit(
    prompt: PromptArgument = None,
    *,
    messages: MessagesOption = None,
    model: ModelOption = DEFAULT_MODEL,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    tier: TierOption = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Of your choice. The same key twice submits one job.")
    ] = None,
    is_followed: Annotated[
        bool, typer.Option("--follow", help="Print the text as it is produced, not the job's id.")
    ] = False,
    is_json: JsonOption = False,
) -> None:
    """Submit a job and print its id. `watch` shows its text, whenever you like."""
    params = job_params(
        prompt, messages, model=model, max_tokens=max_tokens, temperature=temperature, tier=tier
    )
    with connect() as client:
        job = client.jobs.create(idempotency_key=idempotency_key, **params)
        if is_followed:
            require_success(follow(client, job.id, is_json=is_json))
        elif is_json:
            print_json(job.raw)
        else:
            print(job.id)


def watch(job_id: JobId, *, is_json: JsonOption = False) -> None:
    """Print a job's text from its beginning and follow it to its end. Exits with 1 if it fails."""
    with connect() as client:
        client.jobs.get(job_id)  # a stream that breaks off is waited for; no such job is not
        require_success(follow(client, job_id, is_json=is_json))


def get(
    job_id: JobId,
    *,
    wait_s: Annotated[
        float, typer.Option("--wait", min=0, max=60, help="For its end, at most so many seconds.")
    ] = 0.0,
    is_json: JsonOption = False,
) -> None:
    """Show a job, and its text as far as it is known."""
    with connect() as client:
        job = client.jobs.get(job_id, wait_s=wait_s)
    if is_json:
        print_json(job.raw)
        return
    cost = f"{from_micros(job.cost_micros)} {job.currency}" if job.cost_micros is not None else ""
    print("  ".join(filter(None, (job.id, job.status, job.model, job.service_tier, cost))))
    if job.error:
        print(f"{job.error.code}: {job.error.message}")
    if job.text:
        print(job.text)


def cancel(job_id: JobId, *, is_json: JsonOption = False) -> None:
    """Cancel a job. What it has produced is kept, and paid for."""
    with connect() as client:
        job = client.jobs.cancel(job_id)
    if is_json:
        print_json(job.raw)
    else:
        print(job.status)


def delete(job_id: JobId, *, is_json: JsonOption = False) -> None:
    """Delete what a job was asked and answered. One that runs is cancelled first."""
    with connect() as client:
        is_deleted = client.jobs.delete(job_id)
    if is_json:
        print_json({"id": job_id, "deleted": is_deleted})
    else:
        print("deleted")
