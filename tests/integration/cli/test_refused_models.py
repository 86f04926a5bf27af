"""A model that can't be served: commands say which and why in one line, and exit with 1."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.stack.database import DatabaseUrls
from tests.integration.cli.conftest import Run, assert_one_line_error
from tests.support.tiny_tokenizer import write_model_folder

Command = Callable[..., subprocess.CompletedProcess[str]]
REFUSED = "model odd is not served: the stub was told to refuse it"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model_folder(tmp_path / "odd")


def quantise(folder: Path) -> None:
    gptq = {"max_position_embeddings": 256, "quantization_config": {"quant_method": "gptq"}}
    (folder / "config.json").write_text(json.dumps(gptq))


@pytest.fixture
def command(millrace: Run, database: DatabaseUrls, state_dir: Path) -> Iterator[Command]:
    """With a Postgres of ours; whatever it starts is stopped."""
    environment = {
        "MILLRACE_STATE_DIR": str(state_dir),
        "MILLRACE_DATABASE_URL": database.owner,
        "MILLRACE_DATABASE_URL_API": database.api,
        "MILLRACE_DATABASE_URL_WORKER": database.worker,
        "MILLRACE_DATABASE_URL_BILLING": database.billing,
        "MILLRACE_STUB_REFUSED": json.dumps(["odd"]),
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return millrace(*arguments, **environment)

    yield run
    run("down")


def test_the_catalog_names_what_nobody_could_serve(command: Command, folder: Path) -> None:
    quantise(folder)
    catalog = folder.parent / "catalog.toml"
    price = "{ input_micros = 1, cached_micros = 1, output_micros = 1 }"
    prices = [f"prices.{tier} = {price}" for tier in ("priority", "default", "flex", "batch")]
    catalog.write_text("\n".join(["[models.x]", 'source = "odd"', *prices]))

    refused = command("catalog", "apply", str(catalog))

    assert_one_line_error(refused, "model x: ", "its weights are quantised by gptq")
    assert refused.stdout == ""


def test_up_with_a_model_that_nobody_could_serve_starts_nothing(
    command: Command, folder: Path
) -> None:
    quantise(folder)

    refused = command("up", "--detach", "--engine", "stub", "--model", str(folder))

    assert_one_line_error(refused, "model odd: ", "its weights are quantised by gptq")
    assert command("status").returncode == 1


# Some 10 s: every process of a machine starts, as no smaller part shows what a user sees.
def test_up_names_a_model_that_its_worker_refused_and_serves_the_others(
    command: Command, folder: Path
) -> None:
    up = command("up", "--detach", "--engine", "stub", "--model", str(folder))
    status = command("status")

    assert_one_line_error(up, "Millrace runs", f"the {REFUSED}")
    assert [line for line in up.stdout.splitlines() if REFUSED in line] == [f"· {REFUSED}"]
    assert status.returncode == 0
    assert REFUSED in status.stdout.splitlines()
    report = json.loads(command("status", "--json").stdout)
    assert report["refused"] == {"odd": REFUSED.partition(": ")[2]}
    assert "demo" in report["workers"][0]["models"]
