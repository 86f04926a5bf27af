"""No request holds the event loop, however much it sends or asks for."""

from __future__ import annotations

import math
from pathlib import Path

import httpx
import pytest

from store.pools import DictConnection
from tests.integration.api.conftest import CATALOG, Tenant, new_tenant
from tests.support.largest import Answer, Owner
from tests.support.largest_requests import (
    Request,
    Route,
    Size,
    largest_requests,
    own_the_most,
    send,
)
from tests.support.tiny_tokenizer import write_model_folder
from tests.support.watched_api import WatchedApi, watched_api

# The aim is 50 ms on a machine that does nothing else. This is CPU time of the process between two
# beats of its loop: waiting for a processor doesn't count, but with cold caches the same work takes
# a multiple of it, and threads that hold nobody up add theirs. So it is twice the aim, and only
# what is above it in every round counts: what a request does it does each time.
MOST_HELD_S = 0.1
ROUNDS = 6
# A client that waits for an answer goes by then: what is to be measured happens before.
PATIENCE_S = 1.0

CONTEXT_LENGTH = 32_768  # of prompts that are read, counted and stored

ANSWER = Answer(num_tokens=700, num_choices=8, top_logprobs=5)
ONE = Answer(num_tokens=5_600, num_choices=1, top_logprobs=5)


@pytest.fixture(scope="session")
def catalog_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model that takes long prompts."""
    folder = tmp_path_factory.mktemp("catalog")
    write_model_folder(folder / "tiny", context_length=CONTEXT_LENGTH)
    (folder / "catalog.toml").write_text(CATALOG)
    return folder / "catalog.toml"


@pytest.fixture
def owned(owner: DictConnection, tenant: Tenant, catalog: None) -> Owner:
    return Owner(owner, tenant.id, "tiny")


@pytest.mark.slow
def test_no_request_holds_the_loop(environment: None, owner: DictConnection, catalog: None) -> None:
    rich = new_tenant(owner, "large", credit_micros=10**15)
    own = own_the_most(Owner(owner, rich.id, "tiny"), Size(num_jobs=2))

    held = {}
    with (
        watched_api() as api,
        httpx.Client(base_url=api.url, headers=rich.headers, trust_env=False) as client,
    ):
        client.get("/v1/models").raise_for_status()
        for route, requests in largest_requests(own).items():
            for request in requests:
                name = f"{route[0]} {request.path} {request.name}"
                held[name] = _held_s(api, client, route, request)

    assert {name: s for name, s in held.items() if s > MOST_HELD_S} == {}


def _held_s(api: WatchedApi, client: httpx.Client, route: Route, request: Request) -> float:
    least_s = math.inf
    for _ in range(ROUNDS):
        api.held_s()  # what was before doesn't count
        send(client, route, request, patience_s=PATIENCE_S)
        least_s = min(least_s, api.held_s())
        if least_s <= MOST_HELD_S:
            break
    return least_s


async def test_what_is_sent_in_pieces_is_the_whole_answer(
    owned: Owner, http: httpx.AsyncClient
) -> None:
    job, chat = owned.job("job", ANSWER), owned.job("chat", ANSWER)
    completion = owned.job("completion", ANSWER, request={"model": "tiny", "prompt": "x"})
    response = owned.job("response", ONE, request={"model": "tiny", "input": "x"})
    values = ANSWER.logprobs()
    assert values is not None

    native = (await http.get(f"/v1/jobs/job_{job.hex}")).json()["output"]
    choices = (await http.get(f"/v1/chat/completions/chatcmpl-{chat.hex}")).json()["choices"]
    texts = (await http.get(f"/v1/completions/cmpl-{completion.hex}")).json()["choices"]
    item = (await http.get(f"/v1/responses/resp_{response.hex}")).json()["output"][0]
    listed = (await http.get("/v1/jobs?limit=1")).json()["data"][0]

    assert [choice["text"] for choice in native] == ["word" * 700] * 8
    assert all(choice["logprobs"]["values"] == values for choice in native)
    for choice in choices:
        shown = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        assert shown == [logprob for logprob, _ in values]
    for choice in texts:
        logprobs = choice["logprobs"]
        assert logprobs["token_logprobs"] == [logprob for logprob, _ in values]
        lengths = [len(token) for token in logprobs["tokens"]]
        assert logprobs["text_offset"] == [sum(lengths[:n]) for n in range(len(lengths))]
    assert len(item["content"][0]["logprobs"]) == ONE.num_tokens
    assert "logprobs" not in listed["output"][0]
