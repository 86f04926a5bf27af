"""A batch of 10,000 lines, and a file as large as they come: minutes long."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator

import openai
import psutil
import pytest

from tests.e2e.test_batches import URL, _content, _ended, _line
from tests.support.cluster import Cluster

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    environment = {"MILLRACE_STUB_STEP_MS": "1"}
    with Cluster(num_workers=2, num_batches=1, worker_environment=environment) as started:
        yield started


@pytest.fixture
def client(cluster: Cluster) -> Iterator[openai.OpenAI]:
    tenant = cluster.create_tenant("acme", credit_micros=10**12)
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key=tenant.api_key) as client:
        yield client


@pytest.mark.slow
def test_ten_thousand_lines_and_a_file_of_200_mb(cluster: Cluster, client: openai.OpenAI) -> None:
    lines = [_line(n) if n % 100 != 7 else _line(n, temperature=9) for n in range(10_000)]
    data = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")

    for goal in (1_000, 4_000):
        cluster.wait_until(
            lambda goal=goal: client.batches.retrieve(batch.id).request_counts.completed >= goal,  # type: ignore[misc,union-attr]
            timeout_s=300,
            what="some lines",
        )
        for member in (cluster.workers[0], cluster.workers[1]):
            member.kill()
            member.start()
    batch = _ended(cluster, client, batch.id, timeout_s=600)

    good, bad = _content(client, batch.output_file_id), _content(client, batch.error_file_id)
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (10_000, 9_900, 100)
    ids = [line["custom_id"] for line in [*good, *bad]]
    assert len(ids) == len(set(ids)) == 10_000
    cluster.wait_until(
        lambda: not cluster.query("SELECT 1 FROM job_outcomes WHERE settled_at IS NULL LIMIT 1"),
        timeout_s=120,
        what="the settling",
    )
    [billed] = cluster.query(
        "SELECT count(*) AS num, count(DISTINCT job_id) AS jobs FROM usage WHERE payer = 'tenant'"
    )
    assert (billed["num"], billed["jobs"]) == (9_900, 9_900)
    _read_200_mb(cluster, client)


def _read_200_mb(cluster: Cluster, client: openai.OpenAI) -> None:
    """Lines whose body is refused, so that what is measured is the reading."""
    filler = "x" * 8_000
    with tempfile.TemporaryFile() as file:
        for number in range(25_000):
            line = _line(number, temperature=9, metadata={"filler": filler})
            file.write(json.dumps(line).encode() + b"\n")
        size = file.tell()
        file.seek(0)
        uploaded = client.files.create(file=("large.jsonl", file), purpose="batch")
    batch = client.batches.create(input_file_id=uploaded.id, endpoint=URL, completion_window="24h")
    process = psutil.Process(cluster.batches[0].pid)
    peak = 0

    def is_read() -> bool:
        nonlocal peak
        peak = max(peak, process.memory_info().rss)
        return client.batches.retrieve(batch.id).status != "validating"

    cluster.wait_until(is_read, timeout_s=300, what="the reading")
    client.batches.cancel(batch.id)
    assert size > 190 * MIB
    assert peak < 300 * MIB
