"""User commands against a whole Millrace with the stub engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.integration.cli.conftest import MessagesOf, Run, assert_one_line_error
from tests.support.batch_server import requests_jsonl
from tests.support.breaking_proxy import breaking_proxy
from tests.support.cluster import Cluster
from tests.support.member import Tenant


@pytest.fixture
def user(millrace: Run, cluster: Cluster, tenant: Tenant) -> Run:
    """Runs user commands as a tenant of its own."""

    def run(*arguments: str, stdin: str | None = None) -> object:
        return millrace(
            *arguments, stdin=stdin, MILLRACE_URL=cluster.url, MILLRACE_API_KEY=tenant.api_key
        )

    return run  # type: ignore[return-value]


def test_job_goes_from_submit_to_its_text(user: Run) -> None:
    job_id = user("submit", "Say something.", "--max-tokens", "20").stdout.strip()

    watched = user("watch", job_id)
    shown = user("get", job_id)
    raw = json.loads(user("get", job_id, "--json").stdout)

    assert watched.returncode == 0
    assert watched.stdout.strip() == raw["output"][0]["text"].strip() != ""
    assert job_id in shown.stdout
    assert raw["output"][0]["text"].strip() in shown.stdout


@pytest.mark.parametrize("how", ["argument", "stdin", "messages", "messages on stdin"])
def test_prompt_comes_from_where_it_is_given(user: Run, tmp_path: Path, how: str) -> None:
    messages = json.dumps([{"role": "user", "content": "hello"}])
    (tmp_path / "messages.json").write_text(messages)
    given: dict[str, tuple[tuple[str, ...], str | None]] = {
        "argument": (("hello",), None),
        "stdin": ((), "hello"),
        "messages": (("--messages", str(tmp_path / "messages.json")), None),
        "messages on stdin": (("--messages", "-"), messages),
    }
    arguments, stdin = given[how]

    result = user("submit", *arguments, "--max-tokens", "3", "--follow", stdin=stdin)

    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_same_idempotency_key_is_the_same_job(user: Run) -> None:
    command = ("submit", "hi", "--max-tokens", "2", "--idempotency-key", "k")

    ids = {user(*command).stdout for _ in range(2)}

    assert len(ids) == 1


def test_events_are_json_lines_on_demand(user: Run) -> None:
    job_id = user("submit", "hi", "--max-tokens", "4").stdout.strip()

    lines = [json.loads(line) for line in user("watch", job_id, "--json").stdout.splitlines()]

    assert "started" in {line["event"] for line in lines}
    assert lines[-1]["event"] == "done"


def test_job_is_cancelled(user: Run) -> None:
    job_id = user("submit", "hi", "--max-tokens", "4000").stdout.strip()

    cancelled = user("cancel", job_id)
    watched = user("watch", job_id)

    assert cancelled.returncode == 0
    assert_one_line_error(watched, job_id, "cancelled")


async def test_watching_survives_connections_that_break(
    user: Run, millrace: Run, cluster: Cluster, tenant: Tenant
) -> None:
    job_id = (await asyncio.to_thread(user, "submit", "hi", "--max-tokens", "200")).stdout.strip()

    async with breaking_proxy(cluster.url) as url:
        environment = {"MILLRACE_URL": url, "MILLRACE_API_KEY": tenant.api_key}
        watched = await asyncio.to_thread(millrace, "watch", job_id, **environment)
    raw = json.loads((await asyncio.to_thread(user, "get", job_id, "--json")).stdout)

    assert watched.returncode == 0, watched.stderr
    assert watched.stdout == raw["output"][0]["text"] + "\n"


def test_piped_chat_keeps_its_history_until_reset(
    user: Run, tenant: Tenant, messages_of: MessagesOf
) -> None:
    lines = "one\n\ntwo\n/reset\nthree\n/exit\nnever said\n"

    result = user("chat", "--max-tokens", "5", "--system", "Be brief.", stdin=lines)

    asked = messages_of(tenant)
    assert result.returncode == 0, result.stderr
    assert [len(messages) for messages in asked] == [2, 4, 2]
    assert asked[1][:2] == ["Be brief.", "one"]
    assert asked[1][2] in result.stdout
    assert asked[2] == ["Be brief.", "three"]


def test_chat_with_a_prompt_says_it_and_ends(
    user: Run, tenant: Tenant, messages_of: MessagesOf
) -> None:
    result = user("chat", "-m", "demo-mini", "--max-tokens", "5", "hello", "--json")

    job = json.loads(result.stdout)
    assert (job["model"], job["usage"]["output_tokens"]) == ("demo-mini", 5)
    assert messages_of(tenant) == [["hello"]]


def test_batch_of_the_platform_is_run_to_its_end(user: Run, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    names = [f"line-{number}" for number in range(5)]
    path.write_text(requests_jsonl(*names))

    result = user("batch", "run", str(path), "--window", "10m", "--json")
    again = user("batch", "run", str(path), "--window", "10m", "--json")

    assert result.returncode == 0, result.stderr
    assert json.loads(again.stdout)["id"] == json.loads(result.stdout)["id"]
    lines = (tmp_path / "in.jsonl.out.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["custom_id"] for line in lines) == names


def test_usage_shows_what_was_settled(user: Run, cluster: Cluster, tenant: Tenant) -> None:
    user("submit", "hi", "--max-tokens", "4", "--follow")
    cluster.wait_until(
        lambda: cluster.query("SELECT 1 FROM usage WHERE tenant_id = %s", (tenant.id,))
    )

    shown = user("usage")
    report = json.loads(user("usage", "--json").stdout)

    assert report["totals"]["output_tokens"] == 4
    assert "demo" in shown.stdout
    assert "balance" in shown.stdout


def test_models_are_listed_with_prices(user: Run) -> None:
    shown = user("models")

    assert "0.30 / 0.03 / 1.20" in shown.stdout
    assert {model["id"] for model in json.loads(user("models", "--json").stdout)} >= {"demo"}


def test_estimate_shows_every_tier(user: Run) -> None:
    result = user("estimate", "hello", "--max-tokens", "10")

    assert result.returncode == 0, result.stderr
    assert all(tier in result.stdout for tier in ("priority", "default", "flex", "batch"))


def test_files_go_there_and_back(user: Run, tmp_path: Path) -> None:
    source, target = tmp_path / "source.txt", tmp_path / "target.txt"
    source.write_bytes(bytes(range(256)) * 1000)

    file_id = user("files", "upload", str(source), "--purpose", "user_data").stdout.strip()
    listed = user("files", "list")
    downloaded = user("files", "download", file_id, str(target))
    again = user("files", "download", file_id, str(target))
    deleted = user("files", "delete", file_id)
    gone = user("files", "download", file_id, str(tmp_path / "other"))

    assert file_id in listed.stdout
    assert "256000" in listed.stdout
    assert downloaded.stdout.strip() == str(target)
    assert target.read_bytes() == source.read_bytes()
    assert_one_line_error(again, "--force")
    assert deleted.returncode == 0
    assert_one_line_error(gone)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("submit", "hi", "-m", "nonsense"), ("model",)),
        (("submit", "hi", "--tier", "nonsense"), ("service_tier",)),
        (("submit", ""), ("empty",)),
        (("submit", "hi", "--messages", "/nowhere.json"), ("not both",)),
        (("submit", "--messages", "/nowhere.json"), ("/nowhere.json",)),
        (("get", "job_0"), ()),
        (("watch", "job_" + "0" * 32), ()),
        (("chat", "hi", "-m", "nonsense"), ("model",)),
        (("files", "upload", "/"), ()),
        (("files", "delete", "file-0"), ()),
        (("batch", "get", "batch_0"), ()),
        (("batch", "run", "/nowhere.jsonl"), ("/nowhere.jsonl: No such file",)),
        (("files", "upload", "/nowhere.txt"), ("/nowhere.txt: No such file",)),
        (("get", "../models"), ("URL",)),
        (("get", ""), ("No job",)),
    ],
)
def test_what_cannot_be_done_is_one_line(
    user: Run, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert_one_line_error(user(*arguments), *words)


@pytest.mark.parametrize("arguments", [("submit", "hi"), ("chat", "hi")])
def test_credit_that_does_not_do_is_one_line(
    millrace: Run, cluster: Cluster, request: pytest.FixtureRequest, arguments: tuple[str, ...]
) -> None:
    poor = cluster.create_tenant(request.node.name, credit_micros=1)

    result = millrace(*arguments, MILLRACE_URL=cluster.url, MILLRACE_API_KEY=poor.api_key)

    assert_one_line_error(result, "credit")


@pytest.mark.parametrize(
    "arguments", [("models",), ("chat", "hi"), ("files", "list"), ("watch", "job_1")]
)
def test_wrong_key_is_one_line(millrace: Run, cluster: Cluster, arguments: tuple[str, ...]) -> None:
    result = millrace(*arguments, MILLRACE_URL=cluster.url, MILLRACE_API_KEY="wrong")

    assert_one_line_error(result, "API key")


@pytest.mark.parametrize(
    "arguments", [("models",), ("files", "list"), ("batch", "list"), ("watch", "job_1")]
)
def test_server_away_is_one_line(millrace: Run, arguments: tuple[str, ...]) -> None:
    result = millrace(*arguments, MILLRACE_URL="http://127.0.0.1:9", MILLRACE_API_KEY="k")

    assert_one_line_error(result, "No answer from http://127.0.0.1:9: Connection refused")
