"""No request holds the event loop, however much it sends or asks for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from store.file_contents import FileContents
from store.pools import DictConnection
from tests.integration.api.conftest import CATALOG, Tenant, new_tenant
from tests.support.belongings import Size, own_the_most
from tests.support.largest import Answer, Owner
from tests.support.largest_others import Others
from tests.support.largest_requests import (
    NO_ANSWER,
    REFUSED,
    Request,
    Route,
    largest_requests,
    send,
)
from tests.support.tiny_tokenizer import write_model_folder
from tests.support.watched_api import WatchedApi, watched_api

pytestmark = pytest.mark.alone

# CPU time of the process between two beats of its loop: waiting for a processor doesn't count, but
# with cold caches the same work takes a multiple of it, and threads that hold nobody up add theirs.
# So only what is above it in every round counts: what a request does it does each time.
MOST_HELD_S = 0.05
ROUNDS = 4

# What is read and answered at once, of a smaller tenant, in few rounds: finds what is clear.
CLEARLY_HELD_S = 0.15
FEW_ROUNDS = 2
SMALLER = Size(
    num_tokens=400, num_jobs=2, num_files=1_000, num_settled=3_000, num_turns=9,
    num_each=FEW_ROUNDS,
)  # fmt: skip

CONTEXT_LENGTH = 32_768  # of prompts that are read, counted and stored

ANSWER = Answer(num_tokens=700, num_choices=8, top_logprobs=5)
ONE = Answer(num_tokens=5_600, num_choices=1, top_logprobs=5)


@dataclass(frozen=True, slots=True)
class Owners:
    """Write what a tenant owns, and ask for it."""

    tenant: Tenant
    jobs: Owner
    others: Others

    def held(
        self, size: Size, is_wanted: Callable[[Request], bool], *, most_s: float
    ) -> dict[str, float]:
        """For how long each request held the loop, at least."""
        own = own_the_most(self.jobs, self.others, size)
        with (
            watched_api() as api,
            httpx.Client(base_url=api.url, headers=self.tenant.headers, trust_env=False) as client,
        ):
            client.get("/v1/models").raise_for_status()
            return {
                f"{route[0]} {request.path} {request.name}": _held_s(
                    api, client, route, request, rounds=size.num_each, most_s=most_s
                )
                for route, requests in largest_requests(own).items()
                for request in requests
                if is_wanted(request)
            }


def _held_s(
    api: WatchedApi,
    client: httpx.Client,
    route: Route,
    request: Request,
    *,
    rounds: int,
    most_s: float,
) -> float:
    least_s = math.inf
    for nth in range(rounds):
        api.held_s()  # what was before doesn't count
        send(client, route, request, nth=nth)
        least_s = min(least_s, api.held_s())
        if least_s <= most_s:
            break
    return least_s


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


@pytest.fixture
def owners(owner: DictConnection, catalog: None, files_folder: Path) -> Owners:
    """Of a tenant that may ask for all there is."""
    rich = new_tenant(owner, "large", credit_micros=10**15)
    contents = FileContents(str(files_folder))
    return Owners(rich, Owner(owner, rich.id, "tiny"), Others(owner, rich.id, contents))


@pytest.mark.slow
def test_no_request_holds_the_loop(environment: None, owners: Owners) -> None:
    size = Size(num_jobs=2, num_each=ROUNDS)

    held = owners.held(size, lambda _: True, most_s=MOST_HELD_S)

    assert {name: s for name, s in held.items() if s > MOST_HELD_S} == {}


def test_no_request_that_is_answered_at_once_clearly_holds_the_loop(
    environment: None, owners: Owners
) -> None:
    def is_answered(request: Request) -> bool:
        return request.answers != REFUSED and NO_ANSWER not in request.answers

    held = owners.held(SMALLER, is_answered, most_s=CLEARLY_HELD_S)

    assert len(held) > 100
    assert {name: s for name, s in held.items() if s > CLEARLY_HELD_S} == {}


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
        assert {len(entries) for entries in logprobs.values()} == {ANSWER.num_tokens}
        assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
    assert len(item["content"][0]["logprobs"]) == ONE.num_tokens
    assert "logprobs" not in listed["output"][0]
