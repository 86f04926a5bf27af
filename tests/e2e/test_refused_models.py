"""Workers whose models can't be loaded: others' jobs run, and nobody takes what isn't theirs."""

from __future__ import annotations

import json

import httpx

from store.pools import connect
from tests.support.cluster import Cluster
from tests.support.waiting import wait_until

NUM_JOBS = 8
WANTED = {"demo": "unavailable", "demo-mini": "active"}


def refusing(*names: str) -> dict[str, str]:
    return {"MILLRACE_STUB_REFUSED": json.dumps(names)}


def run(http: httpx.Client) -> str:
    """The status in which a job of the served model ends."""
    body = {"model": "demo-mini", "prompt": "a", "max_tokens": 2}
    job_id = http.post("/v1/jobs", json=body).json()["id"]
    return str(http.get(f"/v1/jobs/{job_id}", params={"wait_s": 20}).json()["status"])


def statuses_of(http: httpx.Client) -> dict[str, str]:
    """Of the models, as an API process knows them some seconds later."""
    return {model["id"]: model["status"] for model in http.get("/v1/models").json()["data"]}


def test_a_worker_without_models_takes_no_tickets_and_the_other_serves_what_it_can() -> None:
    with Cluster(num_workers=0, num_maintenance=0) as cluster:
        cluster.add_worker(environment=refusing("demo", "demo-mini"))
        cluster.add_worker(environment=refusing("demo"))
        with cluster.http(cluster.create_tenant("acme")) as http:
            wait_until(lambda: statuses_of(http) == WANTED, timeout_s=30)
            refused = http.post("/v1/jobs", json={"model": "demo", "prompt": "a", "max_tokens": 2})
            statuses = [run(http) for _ in range(NUM_JOBS)]

            assert refused.json()["error"]["code"] == "model_unavailable"
            assert statuses == ["incomplete"] * NUM_JOBS
            assert "stub" in http.get("/readyz").json()["refused"]["demo"]
        # Billing's tickets aren't taken by it either.
        with connect(cluster.platform.database.owner, application_name="test") as connection:
            query = "SELECT count(*) = %s AS is_settled FROM usage"
            wait_until(
                lambda: (connection.execute(query, [NUM_JOBS]).fetchone() or {})["is_settled"],
                timeout_s=30,
            )
