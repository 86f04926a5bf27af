"""What user commands share: the client, and how a request is given on the command line."""

# ruff: noqa: PLC0415 (a command imports what it needs when it runs, so that `--help` is instant)

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import CommandError, MisuseError

if TYPE_CHECKING:
    from millrace import Client, CreateJobParams, Message


class Tier(StrEnum):
    """What `service_tier` may be."""

    AUTO = "auto"
    PRIORITY = "priority"
    DEFAULT = "default"
    FLEX = "flex"
    BATCH = "batch"


JobId = Annotated[str, typer.Argument(help="As `submit` prints it: job_...")]
ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", envvar="MILLRACE_MODEL", help="`millrace models` lists them."),
]
PromptArgument = Annotated[
    str | None, typer.Argument(help="What to say. `-` or nothing reads it from stdin.")
]
MessagesOption = Annotated[
    Path | None,
    typer.Option("--messages", help="A file with a JSON list of messages. `-` reads stdin."),
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(min=1, help="Length of the answer at most. Default: what the model allows."),
]
TemperatureOption = Annotated[
    float | None, typer.Option(min=0, max=2, help="0 takes the likeliest token each time.")
]
TierOption = Annotated[Tier | None, typer.Option("--tier", help="How soon, at what price.")]

DEFAULT_MODEL = "demo"


def connect() -> Client:
    """MILLRACE_URL and MILLRACE_API_KEY, else those of this machine's `make up`.

    Its key goes to its own address and to no other server.
    """
    url, key = os.environ.get("MILLRACE_URL"), os.environ.get("MILLRACE_API_KEY")
    if not (url and key):
        from cli.stack.state import StateFolder

        state = StateFolder.default()
        running = state.read_running()
        own_url = running.addresses.get("api") if running else None
        url = url or own_url
        if not key and url and url.rstrip("/") == own_url:
            key = state.find_secret("api_key")
    if url and not key:
        raise CommandError(f"set MILLRACE_API_KEY, the key for {url}")
    if not (url and key):
        raise CommandError("set MILLRACE_URL and MILLRACE_API_KEY, or start Millrace by `make up`")
    from millrace import Client

    return Client(url=url, api_key=key)


def job_params(
    prompt: str | None,
    messages: Path | None,
    *,
    model: str,
    max_tokens: int | None = None,
    temperature: float | None = None,
    tier: Tier | None = None,
) -> CreateJobParams:
    """A request as the options say it. Raises MisuseError where they say none."""
    if prompt is not None and messages is not None:
        raise MisuseError("give a prompt or --messages, not both")
    params: CreateJobParams = {
        "model": model,
        "messages": _from_file(messages) if messages else _from_prompt(prompt),
    }
    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "service_tier": tier,
    }
    given = {name: value for name, value in options.items() if value is not None}
    return {**params, **given}  # type: ignore[typeddict-item]


def _from_prompt(prompt: str | None) -> list[Message]:
    if prompt is None and sys.stdin.isatty():
        raise MisuseError("give a prompt, --messages FILE, or text on stdin")
    text = sys.stdin.read() if prompt in (None, "-") else prompt
    if not text:
        raise MisuseError("the prompt is empty")
    return [{"role": "user", "content": text}]


def _from_file(path: Path) -> list[Message]:
    is_stdin = str(path) == "-"
    name = "stdin" if is_stdin else str(path)
    try:
        parsed = json.loads(sys.stdin.read() if is_stdin else path.read_text())
    except ValueError:
        raise CommandError(f"{name} is no JSON") from None
    if not isinstance(parsed, list):
        raise CommandError(f"{name} holds no JSON list of messages")
    return parsed
