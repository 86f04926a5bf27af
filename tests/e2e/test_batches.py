"""Batches through OpenAI's client: every line once, whatever dies in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from store.pools import connect
from tests.support.canary import found_in_postgres, found_in_redis, found_on_disk
from tests.support.cluster import Cluster
from tests.support.member import Tenant
from workers.maintenance.file_sweeper import FileSweeper
from workers.maintenance.purger import Purger

URL: Any = "/v1/chat/completions"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    environment = {"MILLRACE_STUB_STEP_MS": "2"}
    with Cluster(num_workers=2, num_batches=1, worker_environment=environment) as started:
        yield started


@pytest.fixture(scope="module")
def tenant(cluster: Cluster) -> Tenant:
    return cluster.create_tenant("acme")


@pytest.fixture
def client(cluster: Cluster, tenant: Tenant) -> Iterator[openai.OpenAI]:
    base_url = f"{cluster.url}/v1"
    with openai.OpenAI(base_url=base_url, api_key=tenant.api_key, max_retries=0) as client:
        yield client


def _line(number: int, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"question {number}"}]
    fields = {"model": "demo", "messages": messages, "max_tokens": 4} | body
    return {"custom_id": f"line-{number}", "method": "POST", "url": URL, "body": fields}


def _start(client: openai.OpenAI, lines: list[dict[str, Any]], window: Any = "24h") -> Any:
    data = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint=URL,
        completion_window=window,
    )


def _ended(cluster: Cluster, client: openai.OpenAI, batch_id: str, timeout_s: float = 90) -> Any:
    ends = ("completed", "failed", "cancelled", "expired")
    cluster.wait_until(
        lambda: client.batches.retrieve(batch_id).status in ends,
        timeout_s=timeout_s,
        what="the end of the batch",
    )
    return client.batches.retrieve(batch_id)


def _content(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def test_every_line_is_answered_once_through_the_death_of_everything(
    cluster: Cluster, client: openai.OpenAI
) -> None:
    lines = [
        _line(number, **({"temperature": 9} if number % 100 == 7 else {})) for number in range(300)
    ]
    batch = _start(client, lines)

    for goal in (60, 150):
        cluster.wait_until(
            lambda goal=goal: client.batches.retrieve(batch.id).request_counts.completed >= goal,  # type: ignore[misc,union-attr]
            timeout_s=60,
            what="some lines",
        )
        cluster.batches[0].kill()
        cluster.workers[0].kill()
        cluster.workers[0].start()
        cluster.batches[0].start()
    partial = _content(client, client.batches.retrieve(batch.id).output_file_id)
    batch = _ended(cluster, client, batch.id)

    good, bad = _content(client, batch.output_file_id), _content(client, batch.error_file_id)
    counts = batch.request_counts
    assert batch.status == "completed"
    assert (counts.total, counts.completed, counts.failed) == (300, 297, 3)
    assert sorted(line["custom_id"] for line in [*good, *bad]) == sorted(
        line["custom_id"] for line in lines
    )
    assert 0 < len(partial) <= len(good)
    assert {line["response"]["status_code"] for line in bad} == {400}
    assert {line["response"]["body"]["error"]["param"] for line in bad} == {"temperature"}
    cluster.wait_until(
        lambda: not cluster.query("SELECT 1 FROM job_outcomes WHERE settled_at IS NULL"),
        what="the settling",
    )
    [billed] = cluster.query(
        "SELECT count(*) AS num, count(DISTINCT u.job_id) AS jobs,"
        " sum(u.output_tokens)::int AS tokens"
        " FROM usage u JOIN jobs j ON j.id = u.job_id WHERE j.batch_id IS NOT NULL"
    )
    assert (billed["num"], billed["jobs"]) == (297, 297)
    shown = sum(line["response"]["body"]["usage"]["completion_tokens"] for line in good)
    assert billed["tokens"] == shown == batch.usage.output_tokens


@pytest.mark.parametrize(
    ("lines", "code", "number"),
    [
        ([_line(0), _line(1), _line(0)], "duplicate_custom_id", 3),
        ([_line(0), _line(1) | {"url": "/v1/completions"}], "mismatched_url", 2),
        ([_line(0), {"custom_id": "x"}], "mismatched_url", 2),
        ([_line(0) | {"custom_id": ""}], "invalid_custom_id", 1),
        ([[]], "invalid_json_line", 1),
    ],
)
def test_a_file_that_cannot_be_used_fails_with_its_line(
    cluster: Cluster, client: openai.OpenAI, lines: list[Any], code: str, number: int
) -> None:
    batch = _ended(cluster, client, _start(client, lines).id)

    assert batch.status == "failed"
    assert [(error.code, error.line) for error in batch.errors.data] == [(code, number)]
    assert not cluster.query(
        "SELECT 1 FROM batch_lines WHERE batch_id = %s", (batch.id.removeprefix("batch_"),)
    )


def test_a_cancelled_batch_keeps_what_is_done(cluster: Cluster, client: openai.OpenAI) -> None:
    batch = _start(client, [_line(number, max_tokens=200) for number in range(600)])
    cluster.wait_until(
        lambda: client.batches.retrieve(batch.id).request_counts.completed > 0,  # type: ignore[union-attr]
        what="a line",
    )

    client.batches.cancel(batch.id)
    batch = _ended(cluster, client, batch.id)

    good, bad = _content(client, batch.output_file_id), _content(client, batch.error_file_id)
    assert batch.status == "cancelled"
    assert len({line["custom_id"] for line in [*good, *bad]}) == len(good) + len(bad) == 600
    assert good
    assert batch.request_counts.completed == len(good)
    assert "batch_cancelled" in {(line["error"] or {}).get("code") for line in bad}


def test_an_expired_batch_says_so_line_by_line(cluster: Cluster, client: openai.OpenAI) -> None:
    batch = _start(client, [_line(number, max_tokens=200) for number in range(400)], window="5m")
    with cluster.connect() as connection:
        connection.execute("UPDATE batches SET expires_at = now() WHERE status <> 'completed'")
    batch = _ended(cluster, client, batch.id)

    bad = _content(client, batch.error_file_id)
    assert batch.status == "expired"
    assert batch.request_counts.failed == len(bad) > 0
    assert {(line["error"] or {}).get("code") for line in bad} == {"batch_expired"}


def test_foreign_files_and_batches_are_not_there(cluster: Cluster, client: openai.OpenAI) -> None:
    batch = _start(client, [_line(0)])
    other = cluster.create_tenant("globex")

    with openai.OpenAI(
        base_url=f"{cluster.url}/v1", api_key=other.api_key, max_retries=0
    ) as foreign:
        for ask in (foreign.batches.retrieve, foreign.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                ask(batch.id)
        with pytest.raises(openai.NotFoundError):
            foreign.batches.create(
                input_file_id=batch.input_file_id, endpoint=URL, completion_window="24h"
            )
        assert not foreign.batches.list().data
    assert batch.id in [one.id for one in client.batches.list()]


def test_nothing_is_left_of_a_deleted_batch_and_its_file(
    cluster: Cluster, client: openai.OpenAI, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_FILES_URL", str(cluster.folder / "files"))
    canary = "kanarienvogel"
    messages = [{"role": "user", "content": canary}]
    lines = [
        _line(0, messages=messages),
        _line(1, messages=messages, store=False),
        _line(2, messages=messages, temperature=9),
    ]
    batch = _ended(cluster, client, _start(client, lines).id)
    answers = _content(client, batch.output_file_id)
    errors = _content(client, batch.error_file_id)
    assert (len(answers), len(errors)) == (2, 1)

    client.files.delete(batch.input_file_id)
    with cluster.http(tenant) as http:
        assert http.delete(f"/v1/batches/{batch.id}").json()["deleted"] is True
        job = http.get(f"/v1/jobs/{answers[0]['response']['request_id']}")
        assert job.status_code in {200, 404}  # its jobs follow
        assert http.get(f"/v1/batches/{batch.id}").status_code == 404
    for file_id in (batch.output_file_id, batch.error_file_id):
        with pytest.raises(openai.NotFoundError):
            client.files.content(file_id)
    with connect(cluster.platform.database.worker, application_name="test") as worker:
        for _ in range(2):
            Purger(cluster.services.redis_url, keep_s=0.0).step(worker)
        FileSweeper().step(worker)

    with cluster.connect() as owner:
        assert found_in_postgres(owner, canary) == []
    with cluster.redis() as redis:
        assert found_in_redis(redis, canary) == []
    assert found_on_disk(cluster.folder / "files", canary) == []
    assert canary not in cluster.logs()
