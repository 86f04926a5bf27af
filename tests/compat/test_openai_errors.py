"""The official Python SDK: error classes, and what it does by itself after an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import openai
import pytest

from tasks.keys import rate_limits
from tasks.limits import TAKE_SCRIPT, Amounts, Limits, take_arguments
from tests.compat.requests import MODEL, QUESTION
from tests.support.cluster import Cluster
from tests.support.member import Tenant


class Wire:
    """Sees what the SDK sends and gets; may spoil the first answer, as an impatient proxy does."""

    def __init__(self, url: str, api_key: str, *, spoils_first: bool = False) -> None:
        self.requests: list[Any] = []
        self.jobs: list[str] = []
        self._spoils_first = spoils_first
        hooks: dict[str, list[Callable[..., Any]]] = {
            "request": [self.requests.append],
            "response": [self._see],
        }
        self.client = openai.OpenAI(
            base_url=url,
            api_key=api_key,
            timeout=60,
            http_client=openai.DefaultHttpxClient(event_hooks=hooks),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def _see(self, response: Any) -> None:
        self.jobs.append(response.headers.get("x-millrace-job-id"))
        if self._spoils_first and len(self.requests) == 1:
            response.read()
            response.status_code = 503


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    arguments: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 8}
    return client.chat.completions.create(**(arguments | fields))


def test_a_wrong_key_is_an_authentication_error(base_url: str) -> None:
    client = openai.OpenAI(base_url=base_url, api_key="mlr_live_wrong")

    with client, pytest.raises(openai.AuthenticationError) as caught:
        chat(client)

    assert caught.value.code == "invalid_api_key"
    assert caught.value.request_id


def test_an_unknown_model_is_a_not_found_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        chat(client, model="gpt-nowhere")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-nowhere")

    assert (caught.value.code, caught.value.type) == ("model_not_found", "invalid_request_error")


def test_an_unknown_file_is_a_not_found_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve("file-" + "0" * 32)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"temperature": 3}, "invalid_request", "temperature"),
        ({"messages": []}, "invalid_request", "messages"),
        ({"max_tokens": 10**6}, "invalid_request", "max_tokens"),
        (
            {"messages": [{"role": "user", "content": "a " * 9000}]},
            "context_length_exceeded",
            "messages",
        ),
        ({"tool_choice": "required"}, "invalid_request", "tool_choice"),
        ({"functions": [{"name": "f"}]}, "unsupported_parameter", "functions"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"not": {}}},
                }
            },
            "invalid_grammar",
            "response_format",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_bad_request_names_its_mistake(
    client: openai.OpenAI, fields: dict[str, Any], code: str, param: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            chat(client, stream=stream, **fields)

        assert caught.value.code == code
        assert (caught.value.param or "").split(".")[0] == param
        assert caught.value.type == "invalid_request_error"


def test_no_credit_is_told_once(cluster: Cluster, base_url: str) -> None:
    poor = cluster.create_tenant("poor", credit_micros=0)

    with (
        Wire(base_url, poor.api_key) as wire,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        chat(wire.client)

    assert caught.value.code == "insufficient_quota"
    assert len(wire.requests) == 1


def test_a_rate_limit_is_waited_for(cluster: Cluster, base_url: str) -> None:
    limits = Limits(requests=30)  # one comes back each 2 s
    tenant = cluster.create_tenant("busy", limits=limits)
    with cluster.redis() as redis:
        all_of_them = take_arguments(limits, Amounts(30, 0))
        redis.eval(TAKE_SCRIPT, 1, rate_limits(tenant.id), *all_of_them)

    with Wire(base_url, tenant.api_key) as wire:
        with pytest.raises(openai.RateLimitError) as caught:
            chat(wire.client.with_options(max_retries=0))
        answer = chat(wire.client)

    assert (caught.value.type, caught.value.code) == ("requests", "rate_limit_exceeded")
    assert answer.choices
    assert [job is not None for job in wire.jobs] == [False, False, True]


def test_a_request_that_can_never_pass_is_told_once(cluster: Cluster, base_url: str) -> None:
    tenant = cluster.create_tenant("small", limits=Limits(tokens=5))

    with Wire(base_url, tenant.api_key) as wire, pytest.raises(openai.RateLimitError) as caught:
        chat(wire.client)

    assert caught.value.type == "tokens"
    assert len(wire.requests) == 1


@pytest.mark.parametrize("stream", [False, True], ids=["answer", "stream"])
def test_a_retry_gets_the_first_tries_job_and_one_bill(
    cluster: Cluster, base_url: str, stream: bool
) -> None:
    tenant = cluster.create_tenant(f"retrying-{stream}")

    with Wire(base_url, tenant.api_key, spoils_first=True) as wire:
        answer = chat(wire.client, stream=stream)
        if stream:
            assert [chunk.id for chunk in answer]

    counts = [request.headers["x-stainless-retry-count"] for request in wire.requests]
    assert counts == ["0", "1"]
    assert wire.jobs[0] is not None
    assert wire.jobs[0] == wire.jobs[1]
    assert num_bills(cluster, tenant) == 1


def test_an_idempotency_key_gives_the_same_job(cluster: Cluster, base_url: str) -> None:
    tenant = cluster.create_tenant("careful")
    headers = {"Idempotency-Key": "order-1"}

    with openai.OpenAI(base_url=base_url, api_key=tenant.api_key) as client:
        first, second = (chat(client, extra_headers=headers) for _ in range(2))
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            chat(client, extra_headers=headers, max_tokens=9)

    assert first == second
    assert caught.value.code == "idempotency_key_reused"
    assert num_bills(cluster, tenant) == 1


def test_what_stock_clients_send_beside_is_ignored_and_named(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=4,
        extra_body={"unheard_of": 1, "top_k": 5},
        store=False,
        prompt_cache_key="k",
    )

    assert raw.headers["x-millrace-ignored"] == "prompt_cache_key, unheard_of"


def num_bills(cluster: Cluster, tenant: Tenant) -> int:
    """Settled jobs of a tenant, once all of them are settled."""
    jobs = "SELECT count(*) AS num FROM jobs WHERE tenant_id = %s"
    bills = "SELECT count(*) AS num FROM usage WHERE tenant_id = %s"
    expected = cluster.query(jobs, [tenant.id])[0]["num"]
    cluster.wait_until(
        lambda: cluster.query(bills, [tenant.id])[0]["num"] >= expected, what="settling"
    )
    return int(cluster.query(bills, [tenant.id])[0]["num"])
