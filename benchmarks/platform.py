"""The whole platform against its own engine: what queue, database, streams and HTTP cost.

`python -m benchmarks.platform --json`: client, API, Redis, Postgres, Celery, inference, billing and
maintenance workers as real processes on this machine, interleaved with the raw engine on the same
model. P1 is output tokens a second of a closed loop of 32 streaming clients over the same loop on
the raw engine; P4 is the time to first token of one client on an idle platform, less the engine's.
With `--peer vllm-serve`, P13 instead: 32 clients of `POST /v1/completions` against `vllm serve`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import orjson

from benchmarks import random_model
from benchmarks.completions_load import CompletionsClient, Load
from benchmarks.figures import finish, machine, median_of, percentile, range_of
from benchmarks.http_client import Connection
from benchmarks.peers.vllm_serve import VllmServe
from benchmarks.raw_engine import RawEngine
from benchmarks.workload import CONCURRENCY, Job, short, w_mix
from tests.support.cluster import Cluster
from tests.support.member import Tenant


class PlatformClient:
    """Streaming clients of one API, in one event loop."""

    def __init__(self, url: str, tenant: Tenant, *, model: str = "m135") -> None:
        self._url = url
        self._headers = tenant.headers
        self._model = model

    def throughput(self, *, seed: int, ramp_s: float, seconds: float) -> float:
        """Output tokens a second received by 32 clients, each with one job at a time."""
        return asyncio.run(self._throughput(seed, ramp_s, seconds))

    def first_token_ms(self, *, seed: int, num: int) -> list[float]:
        """POST to first token event, one job at a time."""
        return asyncio.run(self._first_tokens(seed, num))

    async def _throughput(self, seed: int, ramp_s: float, seconds: float) -> float:
        jobs = w_mix(seed)
        start = time.monotonic() + ramp_s
        counts = [0]

        async def client() -> None:
            async with self._connection() as connection:
                while time.monotonic() < start + seconds:
                    async for num_tokens in self._stream(connection, next(jobs)):
                        if start <= time.monotonic() < start + seconds:
                            counts[0] += num_tokens

        await asyncio.gather(*(client() for _ in range(CONCURRENCY)))
        return counts[0] / seconds

    async def _first_tokens(self, seed: int, num: int) -> list[float]:
        times = []
        async with self._connection() as connection:
            for job in itertools.islice(short(seed), num):
                started = time.monotonic()
                first: float | None = None
                async for _ in self._stream(connection, job):
                    first = first or time.monotonic() - started
                times.append((first or 0.0) * 1000)
        return times

    def _connection(self) -> Connection:
        return Connection(self._url, self._headers)

    async def _stream(self, connection: Connection, job: Job) -> AsyncIterator[int]:
        """Submit a job and follow it: the number of tokens of each token event."""
        reply = await connection.post("/v1/jobs", self._body(job))
        async for name, data in connection.events(reply["events_url"]):
            if name == b"token":
                yield len(orjson.loads(data)["token_ids"])
            elif name == b"done":
                status = orjson.loads(data)["job"]["status"]
                assert status in ("completed", "incomplete"), status

    def _body(self, job: Job) -> dict[str, Any]:
        return {
            "model": self._model,
            "prompt": " ".join(map(random_model.word, job.prompt)),
            "max_tokens": job.max_tokens,
            "temperature": 0,
        }


def measure_engine(
    client: PlatformClient, engine: RawEngine, *, rounds: int, seconds: float, num_first: int
) -> dict[str, object]:
    """Both arms by turns, the order turning around each round."""
    loads: dict[str, list[float]] = {"engine": [], "platform": []}
    firsts: dict[str, list[list[float]]] = {"engine": [], "platform": []}
    arms: dict[str, PlatformClient | RawEngine] = {"engine": engine, "platform": client}
    for number in _progress(range(rounds)):
        names = list(arms) if number % 2 == 0 else list(reversed(arms))
        for name in names:
            loads[name].append(arms[name].throughput(seed=number, ramp_s=5, seconds=seconds))
        for name in names:
            firsts[name].append(arms[name].first_token_ms(seed=number, num=num_first))
    return _figures(loads, firsts)


def _figures(
    loads: dict[str, list[float]], firsts: dict[str, list[list[float]]]
) -> dict[str, object]:
    ratios = [ours / raw for ours, raw in zip(loads["platform"], loads["engine"], strict=True)]
    added = {
        share: [
            percentile(ours, share) - percentile(raw, share)
            for ours, raw in zip(firsts["platform"], firsts["engine"], strict=True)
        ]
        for share in (0.5, 0.99)
    }
    return {
        "platform_vs_engine": median_of(ratios),
        "platform_vs_engine_range": range_of(ratios),
        "platform_tok_s": median_of(loads["platform"], 1),
        "engine_tok_s": median_of(loads["engine"], 1),
        "added_ttft_ms_p50": median_of(added[0.5], 2),
        "added_ttft_ms_p50_range": range_of(added[0.5], 2),
        "added_ttft_ms_p99": median_of(added[0.99], 2),
        "added_ttft_ms_p99_range": range_of(added[0.99], 2),
        "rounds": len(ratios),
        "machine": machine(),
    }


def _progress(numbers: range) -> Iterator[int]:
    for number in numbers:
        print(f"round {number + 1} of {len(numbers)}", file=sys.stderr, flush=True)
        yield number


def measure_peer(
    ours: CompletionsClient,
    theirs: CompletionsClient,
    peer: VllmServe,
    *,
    rounds: int,
    seconds: float,
) -> dict[str, object]:
    """The platform and a server of the same model by turns; neither works while the other does."""
    loads: dict[str, list[Load]] = {"platform": [], "vllm": []}
    for number in _progress(range(rounds)):
        for name in ("platform", "vllm") if number % 2 == 0 else ("vllm", "platform"):
            if name == "vllm":
                peer.resume()
                loads[name].append(theirs.load(seed=number, ramp_s=5, seconds=seconds))
                peer.suspend()
            else:
                loads[name].append(ours.load(seed=number, ramp_s=5, seconds=seconds))
    return _peer_figures(loads["platform"], loads["vllm"])


def _peer_figures(ours: list[Load], theirs: list[Load]) -> dict[str, object]:
    """Of each round, then of all. Where a server began no answer there is no first token."""
    pairs = list(zip(ours, theirs, strict=True))
    ratios = [our.tokens_per_second / their.tokens_per_second for our, their in pairs]
    began = [(our, their) for our, their in pairs if our.first_token_ms and their.first_token_ms]
    our_firsts = [percentile(our.first_token_ms, 0.5) for our, _ in began]
    their_firsts = [percentile(their.first_token_ms, 0.5) for _, their in began]
    firsts = [our / their for our, their in zip(our_firsts, their_firsts, strict=True)]
    return {
        "vs_vllm_serve": median_of(ratios),
        "vs_vllm_serve_range": range_of(ratios),
        "loaded_ttft_p50_vs_vllm_serve": median_of(firsts) if began else None,
        "loaded_ttft_p50_vs_vllm_serve_range": range_of(firsts) if began else None,
        "loaded_ttft_rounds": len(began),
        "platform_tok_s": median_of([load.tokens_per_second for load in ours], 1),
        "vllm_serve_tok_s": median_of([load.tokens_per_second for load in theirs], 1),
        "platform_loaded_ttft_ms_p50": median_of(our_firsts, 1) if began else None,
        "vllm_serve_loaded_ttft_ms_p50": median_of(their_firsts, 1) if began else None,
        "rounds": len(pairs),
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0, help="steady state of each arm")
    parser.add_argument("--first-tokens", type=int, default=100, help="idle requests a round")
    parser.add_argument("--peer", choices=["vllm-serve"], help="P13, instead of P1 and P4")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as name:
        folder = Path(name)
        model = random_model.build(folder / "m135")
        catalog = random_model.write_catalog(folder / "catalog.toml", model)
        figures = (_against_peer if options.peer else _against_engine)(model, catalog, options)
    finish(figures, as_json=options.json)


def _against_engine(model: Path, catalog: Path, options: argparse.Namespace) -> dict[str, object]:
    with RawEngine(model) as engine, _cluster(catalog) as cluster:
        client = PlatformClient(cluster.url, _tenant(cluster))
        client.throughput(seed=99, ramp_s=0, seconds=3)  # warm both up
        engine.throughput(seed=99, ramp_s=0, seconds=3)
        return measure_engine(
            client,
            engine,
            rounds=options.rounds,
            seconds=options.seconds,
            num_first=options.first_tokens,
        )


def _against_peer(model: Path, catalog: Path, options: argparse.Namespace) -> dict[str, object]:
    with VllmServe(model, name="m135") as peer:
        theirs = CompletionsClient(peer.url, {}, model="m135")
        theirs.load(seed=99, ramp_s=0, seconds=3)
        peer.suspend()
        with _cluster(catalog) as cluster:
            ours = CompletionsClient(cluster.url, _tenant(cluster).headers, model="m135")
            ours.load(seed=99, ramp_s=0, seconds=3)
            return measure_peer(ours, theirs, peer, rounds=options.rounds, seconds=options.seconds)


def _cluster(catalog: Path) -> Cluster:
    return Cluster(
        engine="millrace",
        catalog=catalog,
        worker_environment={"MILLRACE_MAX_NUM_SEQS": str(CONCURRENCY)},
    )


def _tenant(cluster: Cluster) -> Tenant:
    return cluster.create_tenant("bench", credit_micros=10**15)


if __name__ == "__main__":
    main()
