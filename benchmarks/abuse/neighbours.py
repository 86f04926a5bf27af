"""A victim's POST beside each kind of abuse over the same alone, by turns."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.abuse.attackers import Attacker
from benchmarks.abuse.victim import post_ms
from benchmarks.figures import median_of, percentile, range_of
from benchmarks.http.enqueue import BODY
from tests.support.cluster import Cluster
from tests.support.member import Tenant

NUM_OWN_JOBS = 2_000  # the abusive tenant's backlog, which its polls ask about
SHARES = {"p50": 0.5, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to misbehave."""

    name: str
    attack: str  # a kind of attackers.py
    paths: tuple[str, ...]
    has_credit: bool = True


def measure(*, rounds: int, seconds: float) -> dict[str, Any]:
    """The worst ratios over all kinds, and each kind's median and range."""
    with Cluster(num_workers=0, num_billing=0, num_maintenance=0) as cluster:
        victim = cluster.create_tenant("victim", credit_micros=10**15)
        abusers = {
            True: cluster.create_tenant("abuser", credit_micros=10**15),
            False: cluster.create_tenant("broke", credit_micros=0),
        }
        kinds = _kinds(_jobs_of(cluster, abusers[True]))
        post_ms(cluster.url, victim.headers, seconds=1.0)  # warm
        ratios = _ratios(cluster, victim, abusers, kinds, rounds=rounds, seconds=seconds)
    worst = {
        f"victim_post_ms_{share}_ratio": max(median_of(values[share]) for values in ratios.values())
        for share in SHARES
    }
    return worst | {"by_kind": {name: _shown(values) for name, values in ratios.items()}}


def _kinds(job_ids: list[str]) -> list[Kind]:
    jobs = tuple(f"/v1/jobs/{job_id}" for job_id in job_ids)
    lists = ("/v1/jobs?limit=100", "/v1/batches?limit=100", "/v1/files?limit=100", "/v1/usage")
    return [
        Kind("half_sent_requests", "half_sent", ()),
        Kind("idle_streams", "idle", tuple(f"{job}/events" for job in jobs)),
        Kind("long_polls", "idle", tuple(f"{job}?wait_s=60" for job in jobs)),
        Kind("polls", "get", jobs),
        Kind("lists", "get", lists),
        Kind("unknown_keys", "bad_keys", ("/v1/models",)),
        Kind("large_bodies", "post", ("/v1/estimate",)),
        Kind("posts_without_credit", "post", ("/v1/jobs",), has_credit=False),
    ]


def _jobs_of(cluster: Cluster, tenant: Tenant) -> list[str]:
    """Queued for good: nobody works here."""
    with cluster.http(tenant) as http:
        answers = (http.post("/v1/jobs", json=BODY) for _ in range(NUM_OWN_JOBS))
        return [answer.raise_for_status().json()["id"] for answer in answers]


def _ratios(
    cluster: Cluster,
    victim: Tenant,
    abusers: dict[bool, Tenant],
    kinds: list[Kind],
    *,
    rounds: int,
    seconds: float,
) -> dict[str, dict[str, list[float]]]:
    ratios: dict[str, dict[str, list[float]]] = {kind.name: {} for kind in kinds}
    for number, kind in _rounds(rounds, kinds):
        alone = post_ms(cluster.url, victim.headers, seconds=seconds)
        with _abused(cluster, abusers[kind.has_credit], kind):
            beside = post_ms(cluster.url, victim.headers, seconds=seconds)
        for share, value in SHARES.items():
            ratio = percentile(beside, value) / percentile(alone, value)
            ratios[kind.name].setdefault(share, []).append(ratio)
            _say(f"round {number}: {kind.name} {share} {ratio:.2f}")
    return ratios


def _rounds(rounds: int, kinds: list[Kind]) -> Iterator[tuple[int, Kind]]:
    for number in range(1, rounds + 1):
        for kind in kinds:
            yield number, kind


@contextmanager
def _abused(cluster: Cluster, abuser: Tenant, kind: Kind) -> Iterator[None]:
    with Attacker(kind.attack, cluster.url, abuser.headers, kind.paths):
        yield


def _shown(values: dict[str, list[float]]) -> dict[str, object]:
    return {
        share: {"median": median_of(ratios, 2), "range": range_of(ratios, 2)}
        for share, ratios in values.items()
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
