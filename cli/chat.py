"""chat: a conversation on the terminal, each answer a job."""

from __future__ import annotations

import importlib
import sys
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from cli.client import DEFAULT_MODEL, MaxTokensOption, ModelOption, TemperatureOption, connect
from cli.errors import CommandError, MisuseError
from cli.help_texts import JOBS, examples
from cli.output import JsonOption, print_json
from cli.text_output import follow, lines_of, require_success

if TYPE_CHECKING:
    from millrace import Client, CreateJobParams, Job, Message

_EXAMPLES = examples(
    "millrace chat",
    'millrace chat "Name three rivers." --max-tokens 50',
    "millrace chat --json < questions.txt > answers.jsonl",
)
_PROMPT = "> "
_HELP = "/reset forgets the conversation, Ctrl-D or /exit ends it; Ctrl-C stops an answer"


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=JOBS, epilog=_EXAMPLES)(chat)


def chat(
    prompt: Annotated[
        str | None, typer.Argument(help="Say this alone. Without it each line of stdin is a turn.")
    ] = None,
    *,
    model: ModelOption = DEFAULT_MODEL,
    system: Annotated[
        str | None, typer.Option(help="A system message, said before everything else.")
    ] = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    is_json: JsonOption = False,
) -> None:
    """Talk with a model. Ctrl-C stops an answer, /reset forgets the conversation, /exit ends it."""
    if prompt == "":
        raise MisuseError("the prompt is empty")
    # A chat whose terminal is closed asks for no more: nobody would read it.
    params: CreateJobParams = {"model": model, "on_disconnect": "cancel"}
    if max_tokens is not None:
        params["max_tokens"] = max_tokens
    if temperature is not None:
        params["temperature"] = temperature
    with connect() as client:
        talk = Conversation(client, params, system=system, is_json=is_json)
        is_interactive = prompt is None and sys.stdin.isatty()
        if is_interactive:
            client.models.get(model)  # what can't work is said before anything is typed
        for line in _typed() if is_interactive else _given(prompt):
            if line == "/exit":
                return
            if line == "/reset":
                talk.reset()
            elif is_interactive:
                _say_on_terminal(talk, line)
            else:
                talk.say(line)


class Conversation:
    """Messages so far. A turn that fails is forgotten, so that it can be tried again."""

    def __init__(
        self, client: Client, params: CreateJobParams, *, system: str | None, is_json: bool
    ) -> None:
        self._client = client
        self._params = params
        self._is_json = is_json
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages: list[Message] = []

    def reset(self) -> None:
        """Forget all that was said."""
        self.messages = []

    def say(self, text: str) -> None:
        """One turn. Ctrl-C cancels the job; raises MillraceError or CommandError if it fails."""
        asked: list[Message] = [*self.messages, {"role": "user", "content": text}]
        params: CreateJobParams = {**self._params, "messages": [*self._system, *asked]}
        key = uuid.uuid4().hex
        try:
            job = self._answer(self._client.jobs.create(idempotency_key=key, **params).id)
        except KeyboardInterrupt:
            # By its key, since it may have been accepted without an answer that reached us.
            self._client.jobs.cancel(self._client.jobs.create(idempotency_key=key, **params).id)
            raise
        self.messages = [*asked, {"role": "assistant", "content": job.text}]

    def _answer(self, job_id: str) -> Job:
        if self._is_json:
            job = self._wait(job_id)
            print_json(job.raw)
        else:
            job = follow(self._client, job_id)
        require_success(job)
        return job

    def _wait(self, job_id: str) -> Job:
        jobs = (event.job for event in self._client.jobs.events(job_id))
        return next(job for job in jobs if job is not None)


def _say_on_terminal(talk: Conversation, line: str) -> None:
    """What goes wrong in one turn doesn't end the conversation."""
    from millrace import MillraceError  # noqa: PLC0415 (`--help` is instant)

    try:
        talk.say(line)
    except KeyboardInterrupt:
        print("\nmillrace: stopped", file=sys.stderr)
    except (CommandError, MillraceError) as error:
        print(f"millrace: {error}", file=sys.stderr)


def _typed() -> Iterator[str]:
    """Lines with editing and history, until Ctrl-D. Ctrl-C drops the line, as in a shell."""
    importlib.import_module("readline")  # `input` uses it where it is loaded
    print(f"({_HELP})", file=sys.stderr)
    while True:
        try:
            line = _ask().strip()
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit ends the conversation)", file=sys.stderr)
            continue
        if line:
            yield line


def _ask() -> str:
    """Answers that go to a file or a program come without the prompts."""
    if sys.stdout.isatty():
        return input(_PROMPT)
    print(_PROMPT, end="", file=sys.stderr, flush=True)
    return input()


def _given(prompt: str | None) -> Iterator[str]:
    return iter([prompt]) if prompt is not None else lines_of(sys.stdin)
