"""A list of prompts to score through real processes, and the death of its worker."""

from __future__ import annotations

from typing import Any

from tests.e2e.streams import Reader, read_beside
from tests.e2e.test_faults import worker_of
from tests.support.cluster import Cluster
from tests.support.member import Tenant
from workers.inference.engine.stub import expected_logprobs

NUM_PROMPTS = 40
PROMPTS = [[10 + number, *range(20, 60)] for number in range(NUM_PROMPTS)]
NUM_TOKENS = 20  # of each


def test_scores_of_a_killed_worker_are_whole_and_the_same(cluster: Cluster, tenant: Tenant) -> None:
    body = {"model": "demo", "prompt": PROMPTS, "echo": True, "logprobs": 1, "seed": 7}
    body |= {"max_tokens": NUM_TOKENS, "on_disconnect": "continue", "stream": True}
    with cluster.http(tenant) as http:
        with http.stream("POST", "/v1/completions", json=body) as response:
            job_id = response.headers["x-millrace-job-id"]
        reader = Reader(http, job_id)
        reading = read_beside(reader)
        cluster.wait_until(lambda: reader.last_seq > 120)

        worker_of(cluster, job_id).kill()
        reading.result(timeout=60)
        answer = http.get(f"/v1/completions/{job_id.replace('job_', 'cmpl-')}").json()

    job: dict[str, Any] | None = reader.job
    assert job is not None
    assert (job["status"], job["attempt"]) == ("incomplete", 2)
    assert answer["usage"]["prompt_tokens"] == sum(map(len, PROMPTS))
    assert answer["usage"]["completion_tokens"] == NUM_PROMPTS * NUM_TOKENS
    for choice, prompt in zip(answer["choices"], PROMPTS, strict=True):
        expected = [expected_logprobs(token_id, 1).logprob for token_id in prompt[1:]]
        found = choice["logprobs"]["token_logprobs"]
        assert (found[0], found[1 : len(prompt)]) == (None, expected)
        assert len(found) == len(prompt) + NUM_TOKENS
