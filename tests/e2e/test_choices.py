"""A job of three choices with logprobs through real processes, and the death of its worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest

from billing.ledger import verify
from billing.pricing import cost_micros
from store.pools import connect
from tasks.ids import format_job_id
from tests.e2e.streams import Reader, read_beside
from tests.e2e.test_faults import worker_of
from tests.support.cluster import Cluster
from tests.support.jobs import PRICES, Jobs
from tests.support.member import Tenant
from workers.inference.engine.stub import expected_logprobs, expected_text, expected_tokens

pytestmark = pytest.mark.usefixtures("mended")

SEED = 7
NUM_CHOICES = 3
NUM_TOKENS = 400  # of each choice, 2 s of the stub and more
SHORT = 30  # choice 1 meets its stop string behind this token
STOP = f" w{expected_tokens(SEED + 1, SHORT)[-1]} "
LENGTHS = (NUM_TOKENS, SHORT + 1, NUM_TOKENS)
TEXTS = [
    expected_text(SEED, NUM_TOKENS),
    expected_text(SEED + 1, SHORT - 1),
    expected_text(SEED + 2, NUM_TOKENS),
]


def add(cluster: Cluster, tenant: Tenant, prompt: Sequence[int]) -> UUID:
    """A job behind the API's back: an idle worker finds it without a ticket."""
    return Jobs(cluster.platform.database, name=str(uuid4())).add(
        tenant_id=tenant.id,
        model="demo",
        model_requested="demo",
        prompt=prompt,
        num_choices=NUM_CHOICES,
        max_output_tokens=NUM_TOKENS,
        reserve_micros=100_000,
        sampling={"seed": SEED, "temperature": 0.0, "logprobs": 1, "stop": [STOP]},
    )


def logprobs(index: int) -> dict[str, Any]:
    token_ids = expected_tokens(SEED + index, LENGTHS[index])
    scored = [expected_logprobs(token_id, 1) for token_id in token_ids]
    values = [[of.logprob, [list(pair) for pair in of.top]] for of in scored]
    return {"token_ids": token_ids, "values": values}


def assert_billed_once(cluster: Cluster, job_id: UUID) -> None:
    bills = "SELECT amount_micros FROM ledger_entries WHERE job_id = %s AND kind = 'usage'"
    cluster.wait_until(lambda: cluster.query(bills, (job_id,)), what="the bill")
    (usage,) = cluster.query("SELECT * FROM usage WHERE job_id = %s", (job_id,))
    cost = cost_micros(input_tokens=3, cached_tokens=0, output_tokens=sum(LENGTHS), prices=PRICES)
    assert (usage["output_tokens"], usage["amount_micros"]) == (sum(LENGTHS), cost)
    assert cluster.query(bills, (job_id,)) == [{"amount_micros": cost}]
    with connect(cluster.platform.database.owner, application_name="test") as connection:
        assert verify(connection).ok


@pytest.mark.parametrize("is_redis_emptied", [False, True])
def test_choices_of_a_killed_worker_are_whole_and_billed_once(
    cluster: Cluster, tenant: Tenant, is_redis_emptied: bool
) -> None:
    # One that no worker has read before: what is cached costs less.
    job_id = add(cluster, tenant, (1, 2, 10 + is_redis_emptied))
    with cluster.http(tenant) as http:
        reader = Reader(http, format_job_id(job_id))
        reading = read_beside(reader)
        # Choice 1 has ended, and a checkpoint knows of it.
        cluster.wait_until(lambda: reader.last_seq > 3 * SHORT + 300)

        worker_of(cluster, format_job_id(job_id)).kill()
        if is_redis_emptied:
            cluster.restart_redis_empty()
        reading.result(timeout=60)

    job = reader.job
    assert job is not None
    assert (job["status"], job["attempt"]) == ("incomplete", 2)
    assert [choice["text"] for choice in job["output"]] == TEXTS
    assert [choice["finish_reason"] for choice in job["output"]] == ["length", "stop", "length"]
    assert [reader.texts[index] for index in range(NUM_CHOICES)] == TEXTS
    whole = [logprobs(index) for index in range(NUM_CHOICES)]
    found = [choice["logprobs"] for choice in job["output"]]
    assert found == ([None] * NUM_CHOICES if is_redis_emptied else whole)
    assert_billed_once(cluster, job_id)
