"""A model that no worker can serve: no job is accepted for it, and everybody is told why."""

from __future__ import annotations

import json
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


def test_the_catalog_refuses_what_no_worker_could_serve(
    owner: DictConnection, catalog_file: Path, tmp_path: Path
) -> None:
    folder = catalog_file.parent / "quantised"
    folder.mkdir()
    for file in (catalog_file.parent / "tiny").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    gptq = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config | gptq))
    path = tmp_path / "catalog.toml"
    path.write_text(catalog_file.read_text().replace('"tiny"', json.dumps(str(folder))))

    with pytest.raises(CatalogError, match="model tiny: its weights are quantised by gptq"):
        apply_catalog(owner, path, check=check_model)

    assert owner.execute("SELECT name FROM models").fetchall() == []
    apply_catalog(owner, catalog_file, check=check_model)
