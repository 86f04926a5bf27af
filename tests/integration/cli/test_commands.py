"""The `millrace` command as a user runs it: one process a call, against a real database."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from cli.errors import CommandError
from cli.main import app
from cli.money import from_micros, to_micros
from cli.stack.catalog import served_model
from cli.stack.database import DatabaseUrls
from cli.stack.options import UpOptions
from cli.stack.state import StateFolder
from tests.integration.cli.conftest import Run, assert_one_line_error


@pytest.fixture
def operator(millrace: Run, database: DatabaseUrls) -> Run:
    """Runs operator commands on a database of its own."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return millrace(
            *arguments, MILLRACE_DATABASE_URL=database.owner, MILLRACE_KEY_PEPPER="pepper"
        )

    return run


def test_help_imports_nothing_slow() -> None:
    code = "import sys, cli.main; print(*sorted(sys.modules))"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()

    assert not {"torch", "celery", "psycopg", "sqlalchemy", "httpx", "fastapi"} & set(modules)


@pytest.mark.parametrize(
    "arguments",
    [("tenants", "list"), ("migrate",), ("ledger", "verify"), ("keys", "revoke", "x")],
)
def test_operator_command_without_a_database_says_so(
    millrace: Run, arguments: tuple[str, ...]
) -> None:
    assert_one_line_error(millrace(*arguments), "Postgres", "make up")


def test_user_command_without_an_address_says_so(millrace: Run) -> None:
    assert_one_line_error(millrace("get", "job_1"), "MILLRACE_URL", "make up")


def test_user_command_with_the_api_away_is_one_line(millrace: Run) -> None:
    result = millrace("get", "job_1", MILLRACE_URL="http://127.0.0.1:9", MILLRACE_API_KEY="k")

    assert_one_line_error(result)


def test_unreachable_database_is_one_line(millrace: Run) -> None:
    result = millrace("tenants", "list", MILLRACE_DATABASE_URL="postgresql://u@127.0.0.1:9/x")

    assert_one_line_error(result, "refused")


def test_status_of_nothing_exits_with_1(millrace: Run) -> None:
    result = millrace("status", "--json")

    assert result.returncode == 1
    assert json.loads(result.stdout)["is_running"] is False


def test_down_of_nothing_is_fine_and_leaves_no_folder(millrace: Run, tmp_path: Path) -> None:
    result = millrace("down")

    assert result.returncode == 0
    assert "not running" in result.stdout
    assert not (tmp_path / "state").exists()


def test_tenant_is_created_once_and_listed(operator: Run) -> None:
    created = operator("tenants", "create", "acme", "--credit", "12.50")
    again = operator("tenants", "create", "acme")
    listed = operator("tenants", "list")

    assert created.returncode == 0
    assert_one_line_error(again, "acme", "already")
    assert created.stdout.strip() in listed.stdout
    assert "12.50" in listed.stdout


def test_limits_of_a_tenant_are_set_one_by_one(operator: Run) -> None:
    def limits() -> tuple[int | None, int | None]:
        [tenant] = json.loads(operator("tenants", "list", "--json").stdout)
        return tenant["requests_per_min"], tenant["tokens_per_min"]

    operator("tenants", "create", "acme", "--requests-per-min", "60")
    seen = [limits()]
    for arguments in (
        ("--tokens-per-min", "90000"),
        ("--requests-per-min", "120"),
        ("--requests-per-min", "none", "--tokens-per-min", "none"),
    ):
        result = operator("tenants", "set-limits", "acme", *arguments)
        assert result.returncode == 0, result.stderr
        seen.append(limits())

    assert seen == [(60, None), (60, 90_000), (120, 90_000), (None, None)]
    assert "unlimited requests" in result.stdout
    assert "unlimited" in operator("tenants", "list").stdout


def test_batch_quota_of_a_tenant_is_set_one_by_one(operator: Run) -> None:
    def quota() -> tuple[int | None, int | None]:
        [tenant] = json.loads(operator("tenants", "list", "--json").stdout)
        return tenant["max_batches"], tenant["max_batch_bytes"]

    created = operator("tenants", "create", "acme", "--max-batches", "0", "--json")
    seen = [quota()]
    for arguments in (
        ("--max-batch-bytes", "5000000000"),
        ("--max-batches", "7", "--requests-per-min", "60"),
        ("--max-batches", "default", "--max-batch-bytes", "default"),
    ):
        result = operator("tenants", "set-limits", "acme", *arguments)
        assert result.returncode == 0, result.stderr
        seen.append(quota())

    assert seen == [(0, None), (0, 5_000_000_000), (7, 5_000_000_000), (None, None)]
    assert json.loads(created.stdout)["max_batches"] == 0
    assert "60 requests" in result.stdout
    assert "default batches of default bytes" in result.stdout


@pytest.mark.parametrize("quota", ["-1", "1.5", "none", str(2**63), "9" * 5_000])
def test_batch_quota_that_is_no_number_is_refused(operator: Run, quota: str) -> None:
    result = operator("tenants", "create", "acme", f"--max-batch-bytes={quota}")

    assert_one_line_error(result, "limit", code=2)
    assert "acme" not in operator("tenants", "list").stdout


def test_limits_of_nobody_are_not_set(operator: Run) -> None:
    result = operator("tenants", "set-limits", "nobody", "--tokens-per-min", "5")

    assert_one_line_error(result, "nobody")


@pytest.mark.parametrize("limit", ["0", "-1", "1.5", "many", "2147483648", "9" * 5_000])
def test_limit_that_is_no_number_is_refused(operator: Run, limit: str) -> None:
    result = operator("tenants", "create", "acme", f"--tokens-per-min={limit}")

    assert_one_line_error(result, "limit", code=2)
    assert "acme" not in operator("tenants", "list").stdout


def test_setting_no_limit_at_all_is_misuse(operator: Run) -> None:
    operator("tenants", "create", "acme")

    assert_one_line_error(operator("tenants", "set-limits", "acme"), "--tokens-per-min", code=2)


def test_key_is_created_and_revoked_once(operator: Run) -> None:
    operator("tenants", "create", "acme")

    created = operator("keys", "create", "acme", "--name", "ci", "--days", "30")
    match = re.fullmatch(r"mlr_live_([0-9A-Za-z]+)_\w+", created.stdout.strip())
    assert match is not None
    revoked = operator("keys", "revoke", match[1])
    again = operator("keys", "revoke", match[1])

    assert revoked.returncode == 0
    assert_one_line_error(again, "no live key")


def test_key_for_an_unknown_tenant_is_refused(operator: Run) -> None:
    assert_one_line_error(operator("keys", "create", "nobody"), "nobody")


def test_credit_with_the_same_reference_counts_once(operator: Run) -> None:
    operator("tenants", "create", "acme")

    for _ in range(2):
        result = operator("credits", "add", "acme", "7.25", "--reference", "invoice-1")
        assert result.returncode == 0, result.stderr

    assert "7.25" in operator("tenants", "list").stdout
    assert operator("ledger", "verify").returncode == 0


def test_key_keeps_how_its_jobs_treat_clients_that_leave(operator: Run) -> None:
    operator("tenants", "create", "acme")

    created = operator(
        "keys", "create", "acme", "--on-disconnect", "cancel", "--no-attach-retries", "--json"
    )
    listed = json.loads(operator("keys", "list", "acme", "--json").stdout)

    key = json.loads(created.stdout)["key"]
    assert [(k["last4"], k["on_disconnect"], k["attach_retries"], k["state"]) for k in listed] == [
        (key[-4:], "cancel", False, "live")
    ]
    assert key not in operator("keys", "list", "acme").stdout


def test_scopes_of_a_key_are_chosen_listed_and_changed(operator: Run) -> None:
    operator("tenants", "create", "acme")
    operator("keys", "create", "acme", "--scopes", "usage:read,jobs:read")
    key_id = operator("keys", "create", "acme").stdout.split("_")[2]

    listed = json.loads(operator("keys", "list", "acme", "--json").stdout)
    changed = operator("keys", "scopes", key_id, "--scope", "infer:write", "--scope", "jobs:read")
    table = operator("keys", "list", "acme").stdout
    unknown = operator("keys", "scopes", "nobody", "--scopes", "all")

    assert [key["scopes"] for key in listed] == [["jobs:read", "usage:read"], ["all"]]
    assert changed.stdout == f"{key_id} may: infer:write, jobs:read\n"
    assert "infer:write, jobs:read" in table
    assert_one_line_error(unknown, "no live key")


def test_key_list_says_which_keys_are_over(operator: Run) -> None:
    operator("tenants", "create", "acme")
    key = operator("keys", "create", "acme").stdout.strip()
    operator("keys", "revoke", key.split("_")[2])

    listed = operator("keys", "list", "acme")

    assert "revoked" in listed.stdout


def test_operator_commands_speak_json(operator: Run) -> None:
    created = json.loads(operator("tenants", "create", "acme", "--credit", "1", "--json").stdout)
    added = operator("credits", "add", "acme", "2", "--reference", "r", "--json")
    listed = json.loads(operator("tenants", "list", "--json").stdout)
    applied = json.loads(operator("catalog", "apply", "--json").stdout)
    verified = json.loads(operator("ledger", "verify", "--json").stdout)

    assert json.loads(added.stdout)["amount_micros"] == 2_000_000
    assert [(t["id"], t["balance_micros"]) for t in listed] == [(created["id"], 3_000_000)]
    assert "demo" in applied["models"]
    assert verified["ok"] is True


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("submit", "--nope"), ("batch", "run"), ("usage", "--days", "0")],
)
def test_misuse_is_one_line_and_exits_with_2(millrace: Run, arguments: tuple[str, ...]) -> None:
    assert_one_line_error(millrace(*arguments), "--help", code=2)


def _commands(group: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, *names, name)
        else:
            yield (*names, name), command


def test_every_command_explains_itself_and_speaks_json() -> None:
    commands = dict(_commands(typer.main.get_command(app)))

    assert ("batch", "run") in commands
    for names, command in commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert "--json" in options, names
        assert command.help, names
        assert all(parameter.help for parameter in command.params), names


def test_examples_are_commands_that_exist() -> None:
    root = typer.main.get_command(app)
    commands = dict(_commands(root))
    texts = [root.epilog or "", *(command.epilog or "" for command in commands.values())]
    examples = re.findall(r"^millrace (.+?)(?:   .*)?$", "\n".join(texts), re.MULTILINE)

    assert len(examples) > 10
    for example in examples:
        words = shlex.split(example.partition(" < ")[0])
        names = next(names for names in commands if words[: len(names)] == list(names))
        commands[names].make_context("millrace", words[len(names) :])  # raises on misuse


def test_help_names_the_command_and_its_exit_codes(millrace: Run) -> None:
    shown = millrace("--help").stdout

    assert "Usage: millrace" in shown
    assert "Exit codes: 0" in shown


def test_catalog_with_a_mistake_is_one_line(operator: Run, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[models.x]\npool = 3\n")

    assert_one_line_error(operator("catalog", "apply", str(wrong)), "wrong.toml", "models.x")


def test_wanted_api_port_that_is_taken_is_one_line(millrace: Run, tmp_path: Path) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = str(squatter.getsockname()[1])

        result = millrace("up", "--detach", "--port", port)

    assert_one_line_error(result, port, "is taken")
    assert StateFolder(tmp_path / "state").read_running() is None


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("MILLRACE_DATABASE_URL", "postgresql://u@127.0.0.1:9/x"),
        ("MILLRACE_REDIS_URL", "redis://127.0.0.1:9/0"),
        ("MILLRACE_REDIS_URL", "not a url"),
    ],
)
def test_up_with_an_external_service_away_is_one_line(
    millrace: Run, database: DatabaseUrls, variable: str, url: str
) -> None:
    urls = {"MILLRACE_DATABASE_URL": database.owner, variable: url}

    assert_one_line_error(millrace("up", "--detach", **urls), variable)


@pytest.mark.parametrize("amount", ["", "x", "-1", "0", "nan", "inf", "0.0000001"])
def test_amount_that_is_no_money_is_refused(amount: str) -> None:
    with pytest.raises(CommandError):
        to_micros(amount)


@pytest.mark.parametrize(
    ("micros", "text"),
    [(0, "0.00"), (12_500_000, "12.50"), (1, "0.000001"), (-2_000_000, "-2.00")],
)
def test_micros_are_written_with_the_decimals_they_need(micros: int, text: str) -> None:
    assert from_micros(micros) == text


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (None, "demo"),
        ("/models/Llama 3.2/", "Llama-3.2"),
        ("owner/Qwen3-0.6B", "Qwen3-0.6B"),
        ("../._odd", "odd"),
    ],
)
def test_model_is_named_after_its_folder(model: str | None, name: str) -> None:
    assert served_model(UpOptions(model=model)) == name
