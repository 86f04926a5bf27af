"""A model that no worker can serve: no job is accepted for it, and everybody is told why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import pytest

from cli.catalog_checks import check_model
from store.catalog import apply_catalog
from store.catalog_file import CatalogError
from store.leases import Lease, register
from store.pools import DictConnection
from tasks.ids import uuid7
from tests.integration.api.readers import BODY

REASON = "its weights are noise"


def announce(owner: DictConnection, *, models: list[str], refused: dict[str, str]) -> None:
    register(
        owner,
        Lease(
            worker_id=uuid7(),
            hostname="host",
            pid=1,
            pool="default",
            device="cpu",
            models=models,
            refused=refused,
            slots=8,
        ),
    )
    owner.execute("UPDATE worker_leases SET expires_at = now() + interval '1 h'")


@pytest.fixture
def refusing(owner: DictConnection) -> None:
    """Before the API starts, so that it knows from the beginning."""
    announce(owner, models=["other"], refused={"tiny": REASON})


@pytest.fixture
def serving(owner: DictConnection) -> None:
    announce(owner, models=["tiny"], refused={})


async def test_no_job_is_accepted_and_the_reason_stands_everywhere(
    refusing: None, http: httpx.AsyncClient
) -> None:
    refusal = await http.post("/v1/jobs", json=BODY)
    model = (await http.get("/v1/models/tiny")).json()
    ready = await http.get("/readyz")

    assert (refusal.status_code, refusal.headers["x-should-retry"]) == (503, "false")
    error = refusal.json()["error"]
    assert (error["code"], error["param"]) == ("model_unavailable", "model")
    assert error["message"] == f"The model 'tiny' can't be served: {REASON}"
    assert (model["status"], model["status_reason"]) == ("unavailable", REASON)
    assert (ready.status_code, ready.json()["refused"]) == (200, {"tiny": REASON})


async def test_one_worker_that_serves_it_is_enough(
    refusing: None, serving: None, http: httpx.AsyncClient
) -> None:
    answers = [await http.post("/v1/jobs", json=BODY), await http.get("/readyz")]

    assert [answer.status_code for answer in answers] == [202, 200]
    assert "refused" not in answers[1].json()


async def test_workers_without_any_model_are_not_ready(
    owner: DictConnection, http: httpx.AsyncClient
) -> None:
    announce(owner, models=[], refused={"tiny": REASON})

    answer = await http.get("/readyz")

    assert answer.status_code == 503
    assert answer.json()["checks"]["worker"] == "without models"
    assert answer.json()["refused"] == {"tiny": REASON}


@pytest.fixture
def private_catalog(catalog_file: Path, tmp_path: Path) -> Path:
    """The catalog with a folder that may be damaged."""
    shutil.copytree(catalog_file.parent / "tiny", tmp_path / "tiny")
    return Path(shutil.copy(catalog_file, tmp_path / "catalog.toml"))


def quantise(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    gptq = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config | gptq))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (quantise, "its weights are quantised by gptq"),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("{{ 1 / 0 }}"),
            "The model's chat template refuses these messages: unsuitable content",
        ),
        (
            lambda folder: (folder / "chat_template.jinja").write_text(
                "{{ raise_exception('a') }}"
            ),
            "The model's chat template refuses these messages: a",
        ),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("{% if"),
            "can't be read: unexpected",
        ),
        (
            lambda folder: (folder / "tokenizer.json").write_text("{}"),
            "can't be read: Model missing",
        ),
        (lambda folder: (folder / "tokenizer.json").write_text("x"), "is not JSON"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"x"),
            "model.safetensors is no safetensors file, or not whole",
        ),
        (
            lambda folder: (folder / "config.json").write_text(
                json.dumps({"max_position_embeddings": 10**12})
            ),
            "neither the catalog nor config.json says its context length",
        ),
    ],
)
def test_the_catalog_refuses_what_nobody_could_serve(
    damage: Callable[[Path], object],
    reason: str,
    owner: DictConnection,
    private_catalog: Path,
) -> None:
    damage(private_catalog.parent / "tiny")

    with pytest.raises(CatalogError) as refused:
        apply_catalog(owner, private_catalog, check=check_model)

    assert str(refused.value).startswith("model tiny: ")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
    assert owner.execute("SELECT name FROM models").fetchall() == []


def test_the_catalog_does_not_wait_for_a_template_that_never_ends(
    owner: DictConnection, private_catalog: Path
) -> None:
    loops = "{% for _ in range(99999) %}{% for _ in range(20) %}{% endfor %}{% endfor %}"
    (private_catalog.parent / "tiny" / "chat_template.jinja").write_text(loops)

    with pytest.raises(CatalogError, match=r"tokenizer and chat template need more than 0\.01 s"):
        apply_catalog(owner, private_catalog, check=partial(check_model, trial_s=0.01))


def test_the_catalog_takes_older_forms_of_templates(
    owner: DictConnection, private_catalog: Path
) -> None:
    folder = private_catalog.parent / "tiny"
    (folder / "chat_template.jinja").unlink()
    named = [{"template": "x"}, "y", {"name": "default", "template": "{{ messages[0].content }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))

    apply_catalog(owner, private_catalog, check=check_model)

    row = owner.execute("SELECT content FROM model_assets WHERE kind = 'chat_template'").fetchone()
    assert row is not None
    assert bytes(row["content"]) == named[2]["template"].encode()  # type: ignore[index]
