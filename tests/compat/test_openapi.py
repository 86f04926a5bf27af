"""schemathesis against our own OpenAPI document: what it says is what a running server does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.stack.files import ROOT
from tests.support.cluster import Cluster
from tests.support.member import Tenant

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")

EXAMPLES = int(os.environ.get("MILLRACE_OPENAPI_EXAMPLES", "120"))  # an operation
AT_LEAST = 42 * EXAMPLES  # requests that must come of them: above 5,000

# Rules between fields ("give either messages or prompt") can't be said in a schema that tools
# understand, so a body that fits it may be refused all the same, with 400.
LEFT_OUT = "positive_data_acceptance"

EVENT = {"event_type": "batch.failed"}
WITHOUT_BODY = ("/cancel", "/resend")

COMPLETION: dict[str, Any] = {"model": "demo", "prompt": "hello", "max_tokens": 4}
QUESTION: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 4,
}


@pytest.fixture(scope="module")
def stub_cluster(server_python: None) -> Iterator[Cluster]:
    """Thousands of jobs are to be cheap."""
    with Cluster(worker_environment={"MILLRACE_STUB_STEP_MS": "0"}) as started:
        yield started


@pytest.fixture(scope="module")
def owner(stub_cluster: Cluster) -> Tenant:
    return stub_cluster.create_tenant("acme")


@pytest.fixture(scope="module")
def document(stub_cluster: Cluster) -> dict[str, Any]:
    document: dict[str, Any] = httpx.get(
        f"{stub_cluster.url}/openapi.json", trust_env=False, timeout=30
    ).json()
    return document


def explore(cluster: Cluster, tenant: Tenant, examples: int, seed: int) -> int:
    """Run all phases, states included. How many requests were made; fails with what was found."""
    command = [
        str(SCHEMATHESIS),
        "run",
        f"{cluster.url}/openapi.json",
        *("--header", f"Authorization: Bearer {tenant.api_key}"),
        *("--checks", "all", "--exclude-checks", LEFT_OUT),
        *("--max-examples", str(examples), "--seed", str(seed)),
        *("--request-timeout", "60", "--warnings", "off", "--continue-on-failure", "--no-color"),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SCHEMATHESIS_HOOKS": "tests.compat.openapi_hooks",
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=850, check=False
    )
    if done.returncode:
        pytest.fail(done.stdout[-20_000:] + done.stderr[-2_000:], pytrace=False)
    match = re.search(r"(\d+) generated", done.stdout)
    assert match, done.stdout
    return int(match[1])


def num_jobs(cluster: Cluster, tenant: Tenant) -> int:
    """What random bodies got admitted."""
    statement = "SELECT count(*) AS num FROM jobs WHERE tenant_id = %s"
    return int(cluster.query(statement, [tenant.id])[0]["num"])


@pytest.mark.timeout(900)
def test_thousands_of_random_requests_find_no_contradiction(
    stub_cluster: Cluster, owner: Tenant
) -> None:
    assert explore(stub_cluster, owner, EXAMPLES, seed=2) >= AT_LEAST
    assert num_jobs(stub_cluster, owner) >= 5  # not all ended at a refusal


def test_every_operation_says_what_it_needs_and_gives(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            answers = [code for code in operation["responses"] if code.startswith("2")]
            assert answers, (method, path)
            if path.startswith("/v1/"):
                assert operation["security"], (method, path)
                assert "401" in operation["responses"], (method, path)
            if method == "post" and not path.endswith(WITHOUT_BODY):
                assert "requestBody" in operation, (method, path)


def test_every_operation_with_an_id_hides_it_from_other_tenants(
    stub_cluster: Cluster, owner: Tenant, document: dict[str, Any]
) -> None:
    ids = _make_one_of_each(stub_cluster, owner)
    stranger = stub_cluster.create_tenant("globex")
    operations = [
        (method, path)
        for path, methods in document["paths"].items()
        for method in methods
        if "_id}" in path
    ]

    with stub_cluster.http(stranger) as http, stub_cluster.http(owner) as own:
        for method, path in operations:
            url = re.sub(r"\{\w+_id\}", _id_for(path, ids), path)
            absent = re.sub(r"[0-9a-f]{32}", "0" * 32, url)
            body: dict[str, Any] = {"json": EVENT} if method == "post" else {}
            refused = http.request(method, url, **body)
            assert refused.status_code == 404, (method, path)
            assert refused.json() == http.request(method, absent, **body).json(), (method, path)
        for resource, identifier in ids.items():
            assert own.get(f"{resource}/{identifier}").status_code == 200, resource


def _make_one_of_each(cluster: Cluster, tenant: Tenant) -> dict[str, str]:
    """Ids by the path of their resource."""
    bodies = {
        "/v1/jobs": COMPLETION,
        "/v1/chat/completions": QUESTION,
        "/v1/completions": COMPLETION,
        "/v1/responses": {"model": "demo", "input": "hello", "max_output_tokens": 4},
    }
    with cluster.http(tenant) as http:
        ids = {path: http.post(path, json=body).json()["id"] for path, body in bodies.items()}
        form: dict[str, Any] = {"files": {"file": ("a.txt", b"text")}}
        form["data"] = {"purpose": "batch"}
        ids["/v1/files"] = http.post("/v1/files", **form).json()["id"]
        batch = {"endpoint": "/v1/completions", "completion_window": "24h"}
        body = batch | {"input_file_id": ids["/v1/files"]}
        ids["/v1/batches"] = http.post("/v1/batches", json=body).json()["id"]
        hook = {"name": "mine", "url": "https://example.com/", "event_types": ["batch.failed"]}
        ids["/v1/webhook_endpoints"] = http.post("/v1/webhook_endpoints", json=hook).json()["id"]
    return ids


def _id_for(path: str, ids: dict[str, str]) -> str:
    """A resource that is new here needs a line in `_make_one_of_each`."""
    return ids[path.split("/{", maxsplit=1)[0]]
