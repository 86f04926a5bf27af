"""Structured output on the demo model, through every process, and through the death of a worker."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from tests.e2e.streams import Reader, read_beside
from tests.e2e.test_faults import worker_of
from tests.support.cluster import Cluster
from tests.support.member import Tenant

pytestmark = pytest.mark.slow  # workers with torch: half a minute

NUM_ROWS = 20  # the model may fill the context with 40 rows: it likes whitespace
# Long enough that a worker can be killed in the middle.
TABLE = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 1, "maxLength": 30},
        "rows": {
            "type": "array",
            "minItems": NUM_ROWS,
            "maxItems": NUM_ROWS,
            "items": {
                "type": "object",
                "properties": {
                    "id": {"type": "integer", "minimum": 0, "maximum": 999},
                    "name": {"type": "string", "pattern": "^[a-z]{3,12}$"},
                    "tier": {"enum": ["priority", "default", "flex", "batch"]},
                },
                "required": ["id", "name", "tier"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["title", "rows"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "table", "schema": TABLE}}
QUESTION = {
    "model": "demo",
    "messages": [{"role": "user", "content": "Which service tiers are there?"}],
    "temperature": 1.0,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(
        engine="millrace",
        num_workers=2,
        worker_environment={"MILLRACE_NUM_THREADS": "1", "MILLRACE_KV_MEMORY_SHARE": "0.05"},
    ) as started:
        yield started


@pytest.fixture(scope="module")
def tenant(cluster: Cluster) -> Tenant:
    return cluster.create_tenant("acme")


@pytest.fixture
def http(cluster: Cluster, tenant: Tenant) -> Iterator[httpx.Client]:
    with cluster.http(tenant) as client:
        yield client


def submit(http: httpx.Client, **fields: Any) -> str:
    answer = http.post("/v1/jobs", json=QUESTION | fields)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def result(http: httpx.Client, job_id: str) -> dict[str, Any]:
    """The job when it is over."""
    job: dict[str, Any] = {"status": "queued"}
    while job["status"] in ("queued", "in_progress"):
        job = http.get(f"/v1/jobs/{job_id}", params={"wait_s": 30}, timeout=60).json()
    return job


def text_of(job: dict[str, Any]) -> str:
    assert job["status"] == "completed", job
    assert job["output"][0]["finish_reason"] == "stop"
    return str(job["output"][0]["text"])


def test_each_form_is_kept(http: httpx.Client) -> None:
    forms: dict[str, dict[str, Any]] = {
        "schema": {"response_format": FORMAT},
        "regex": {"structured_outputs": {"regex": r"tier-[a-z]{2,9}(, tier-[a-z]{2,9}){3}"}},
        "choice": {"structured_outputs": {"choice": ["priority", "batch", "ünï 😀"]}},
        "grammar": {"structured_outputs": {"grammar": 'start: "(" start ")" | /[a-z]{4}/'}},
    }

    jobs = {name: submit(http, seed=1, **fields) for name, fields in forms.items()}
    texts = {name: text_of(result(http, job_id)) for name, job_id in jobs.items()}

    jsonschema.validate(json.loads(texts["schema"]), TABLE)
    assert re.fullmatch(r"tier-[a-z]{2,9}(, tier-[a-z]{2,9}){3}", texts["regex"])
    assert texts["choice"] in ("priority", "batch", "ünï 😀")
    assert re.fullmatch(r"(\()*[a-z]{4}(\))*", texts["grammar"])
    assert texts["grammar"].count("(") == texts["grammar"].count(")")


def test_output_cut_by_its_limit_is_never_passed_off_as_complete(http: httpx.Client) -> None:
    job = result(http, submit(http, response_format=FORMAT, max_tokens=20))

    assert job["status"] == "incomplete"
    assert job["incomplete_details"] == {"reason": "max_output_tokens"}
    assert job["output"][0]["finish_reason"] == "length"


def test_job_of_a_killed_worker_is_finished_in_the_same_form(
    cluster: Cluster, tenant: Tenant, http: httpx.Client
) -> None:
    job_id = submit(http, response_format=FORMAT, seed=3)
    with cluster.http(tenant) as reading:
        reader = Reader(reading, job_id)
        reading_on = read_beside(reader, timeout_s=90)
        cluster.wait_until(lambda: len(reader.text) > 100, what="the first rows")

        victim = worker_of(cluster, job_id)
        victim.kill()
        half = reader.text
        reading_on.result(timeout=90)
    victim.start(wait=False)

    assert reader.job is not None
    assert reader.attempts == [1, 2]
    assert reader.seqs == list(range(1, len(reader.seqs) + 1))
    text = text_of(reader.job)
    assert reader.text == text
    assert text.startswith(half)
    document = json.loads(text)
    jsonschema.validate(document, TABLE)
    assert len(document["rows"]) == NUM_ROWS
    attempts = cluster.query(
        "SELECT output_tokens FROM job_attempts WHERE job_id = %s ORDER BY attempt",
        (job_id.removeprefix("job_"),),
    )
    assert 0 < attempts[1]["output_tokens"] < reader.job["usage"]["output_tokens"]
