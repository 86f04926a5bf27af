"""`millrace chat` as a person uses it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from billing.ledger import top_up
from tests.integration.cli.conftest import MessagesOf, command_environment
from tests.support.cluster import Cluster
from tests.support.member import Tenant
from tests.support.terminal import CTRL_C, CTRL_D, Terminal

PROMPT = "> "
TOKEN = " w"  # how each of the stub begins

Chat = Callable[..., Terminal]


@pytest.fixture
def chat(cluster: Cluster, tenant: Tenant, tmp_path: Path) -> Chat:
    """Starts a conversation. Keyword arguments are environment."""

    def start(*options: str, pipes_output: bool = False, **extra: str) -> Terminal:
        access = {"MILLRACE_URL": cluster.url, "MILLRACE_API_KEY": tenant.api_key}
        environment = command_environment(tmp_path / "state", **access | extra)
        command = [sys.executable, "-m", "cli.main", "chat", *options]
        return Terminal(command, env=environment, pipes_output=pipes_output)

    return start


def _statuses(cluster: Cluster, tenant: Tenant) -> list[str]:
    """Of the tenant's jobs, oldest first."""
    rows = cluster.query("SELECT status FROM jobs WHERE tenant_id = %s ORDER BY id", (tenant.id,))
    return [row["status"] for row in rows]


def test_answers_are_streamed_and_remembered(
    chat: Chat, cluster: Cluster, tenant: Tenant, messages_of: MessagesOf
) -> None:
    with chat("--max-tokens", "400") as terminal:
        terminal.wait_for(PROMPT)
        terminal.type("one")
        terminal.wait_for(TOKEN)
        assert _statuses(cluster, tenant) == ["in_progress"]
        terminal.wait_for(PROMPT)
        terminal.type("two")
        terminal.wait_for(PROMPT)
        terminal.press(CTRL_D)

        assert terminal.wait() == 0

    first, second = messages_of(tenant)
    assert first == ["one"]
    assert (second[0], second[2]) == ("one", "two")
    assert second[1] in terminal.shown


def test_ctrl_c_ends_the_answer_and_its_job_but_not_the_conversation(
    chat: Chat, cluster: Cluster, tenant: Tenant, messages_of: MessagesOf
) -> None:
    with chat() as terminal:
        terminal.wait_for(PROMPT)
        terminal.type("never mind")
        terminal.wait_for(TOKEN)
        terminal.press(CTRL_C)
        terminal.wait_for("millrace: stopped")
        cluster.wait_until(lambda: _statuses(cluster, tenant) == ["cancelled"])

        terminal.wait_for(PROMPT)
        terminal.type("again")
        terminal.wait_for(TOKEN)
        terminal.press(CTRL_C)
        terminal.wait_for(PROMPT)
        terminal.type("/exit")

        assert terminal.wait() == 0

    assert messages_of(tenant) == [["never mind"], ["again"]]
    assert "Traceback" not in terminal.shown


def test_ctrl_c_at_the_prompt_drops_the_line_and_says_how_to_leave(
    chat: Chat, tenant: Tenant, messages_of: MessagesOf
) -> None:
    with chat("--max-tokens", "2") as terminal:
        terminal.wait_for(PROMPT)
        terminal.press("half a line")
        terminal.wait_for("half a line")
        terminal.press(CTRL_C)
        terminal.wait_for("(Ctrl-D or /exit ends the conversation)")
        terminal.wait_for(PROMPT)
        terminal.type("whole")
        terminal.wait_for(PROMPT)
        terminal.press(CTRL_D)

        assert terminal.wait() == 0

    assert messages_of(tenant) == [["whole"]]


def test_conversation_goes_on_after_a_turn_that_failed(
    chat: Chat, cluster: Cluster, messages_of: MessagesOf
) -> None:
    poor = cluster.create_tenant("poor", credit_micros=1)
    with chat("--max-tokens", "2", MILLRACE_API_KEY=poor.api_key) as terminal:
        terminal.wait_for(PROMPT)
        terminal.type("unpaid")
        terminal.wait_for("\nmillrace: Your credit doesn't cover this request.\n> ")
        with cluster.connect() as connection:
            top_up(connection, poor.id, 1_000_000, "paid")
        terminal.type("paid")
        terminal.wait_for(PROMPT)
        terminal.press(CTRL_D)

        assert terminal.wait() == 0

    assert messages_of(poor) == [["paid"]]


@pytest.mark.parametrize(
    ("options", "environment", "words"),
    [
        ((), {"MILLRACE_API_KEY": "wrong"}, "Incorrect API key"),
        ((), {"MILLRACE_URL": "http://127.0.0.1:9"}, "No answer from http://127.0.0.1:9"),
        (("-m", "nonsense"), {}, "model does not exist"),
    ],
    ids=["key", "url", "model"],
)
def test_what_cannot_work_is_one_line_before_anything_is_typed(
    chat: Chat, options: tuple[str, ...], environment: dict[str, str], words: str
) -> None:
    with chat(*options, **environment) as terminal:
        assert terminal.wait() == 1

    (line,) = terminal.shown.splitlines()
    assert line.startswith("millrace: ")
    assert words in line


def test_json_on_a_pipe_is_free_of_prompts(chat: Chat) -> None:
    with chat("--json", "--max-tokens", "3", pipes_output=True) as terminal:
        for _ in range(2):
            terminal.wait_for(PROMPT)
            terminal.type("hello")
        terminal.wait_for(PROMPT)
        terminal.press(CTRL_D)

        assert terminal.wait() == 0

    jobs = [json.loads(line) for line in terminal.piped.splitlines()]
    assert [job["usage"]["output_tokens"] for job in jobs] == [3, 3]


def test_job_of_a_terminal_that_was_closed_is_cancelled(
    chat: Chat, cluster: Cluster, tenant: Tenant
) -> None:
    with chat() as terminal:
        terminal.wait_for(PROMPT)
        terminal.type("hello")
        terminal.wait_for(TOKEN)

    cluster.wait_until(lambda: _statuses(cluster, tenant) == ["cancelled"], what="cancelling")
