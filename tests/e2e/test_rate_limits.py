"""Rate limits of a whole platform: what jobs didn't use comes back, and batches are not held up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tasks.limits import Limits
from tests.support.cluster import Cluster

BODY: dict[str, Any] = {"model": "demo", "prompt": "Hello", "temperature": 0, "max_tokens": 10}
ENDS = ("completed", "failed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(num_batches=1, worker_environment={"MILLRACE_STUB_STEP_MS": "20"}) as started:
        yield started


def test_tokens_that_a_job_did_not_use_can_be_asked_for_again(cluster: Cluster) -> None:
    tenant = cluster.create_tenant("short", limits=Limits(tokens=1_200))  # 20 a second
    with cluster.http(tenant) as http:
        # It reserves all of its tenant's tokens, and is cancelled before it used them.
        body = BODY | {"max_tokens": 1_100, "ignore_eos": True}
        first = http.post("/v1/jobs", json=body)
        refused = http.post("/v1/jobs", json=body)

        http.post(first.headers["Location"] + "/cancel")
        answers: list[httpx.Response] = []

        def is_admitted() -> bool:
            answers.append(http.post("/v1/jobs", json=BODY | {"max_tokens": 700}))
            return answers[-1].status_code == 202

        cluster.wait_until(is_admitted, timeout_s=20, what="the giving back")

    assert (first.status_code, refused.status_code) == (202, 429)
    assert refused.json()["error"]["type"] == "tokens"
    assert int(refused.headers["retry-after"]) > 30  # what waiting alone would have taken


def test_lines_of_a_batch_are_not_limited_and_give_nothing_back(cluster: Cluster) -> None:
    tenant = cluster.create_tenant("batching", limits=Limits(requests=1, tokens=100))
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": BODY}
        for number in range(20)
    ]
    with cluster.http(tenant) as http:
        form = {"file": ("in.jsonl", "\n".join(map(json.dumps, lines)))}
        file = http.post("/v1/files", files=form, data={"purpose": "batch"}).json()
        asked = {"input_file_id": file["id"], "endpoint": "/v1/completions"}
        batch = http.post("/v1/batches", json=asked | {"completion_window": "24h"}).json()

        def get() -> Any:
            return http.get(f"/v1/batches/{batch['id']}").json()

        cluster.wait_until(lambda: get()["status"] in ENDS, timeout_s=60, what="the batch's end")

        assert get()["request_counts"] == {"total": 20, "completed": 20, "failed": 0}
        # None of them was counted.
        answer = http.post("/v1/jobs", json=BODY)
    assert answer.status_code == 202
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
