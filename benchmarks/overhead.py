"""What the platform costs around its engine: CPU time an output token, by process.

`python -m benchmarks.overhead --json`: 32 streaming clients in a closed loop on real processes,
with an engine that waits instead of computing, at about a thousand tokens a second. What its worker
takes is then all but the model's own work. Unlike a rate, CPU time hardly depends on what else runs
on the machine, so that a change of some per cent shows.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass

import psutil

from benchmarks.figures import finish, machine, median_of, range_of
from benchmarks.platform import PlatformClient
from benchmarks.workload import CONCURRENCY
from tests.support.cluster import Cluster

STEP_MS = 30.0
RAMP_S = 5.0
# A word in the command line of a process -> what it is called here.
_KINDS = {
    "api.server": "api",
    "workers.inference": "worker",
    "billing.usage": "billing",
    "workers.maintenance": "maintenance",
    "postgres": "postgres",
    "redis-server": "redis",
    "valkey-server": "redis",
}


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one round."""

    tokens_per_second: float
    us_per_token: dict[str, float]


def measure(client: PlatformClient, *, seed: int, seconds: float) -> Cost:
    """CPU time while the load is steady, over the tokens of that time."""
    samples: list[dict[str, float]] = []

    def sample() -> None:
        time.sleep(RAMP_S)
        samples.append(cpu_times())
        time.sleep(seconds)
        samples.append(cpu_times())

    thread = threading.Thread(target=sample)
    thread.start()
    rate = client.throughput(seed=seed, ramp_s=RAMP_S, seconds=seconds)
    thread.join()
    before, after = samples
    num_tokens = rate * seconds
    return Cost(rate, {kind: (after[kind] - before[kind]) / num_tokens * 1e6 for kind in after})


def cpu_times() -> dict[str, float]:
    """Seconds that each kind of process has taken so far; `client` is this process."""
    own = os.times()
    times = defaultdict(float, client=own.user + own.system)
    for process in psutil.Process().children(recursive=True):
        try:
            if kind := _kind(process):
                used = process.cpu_times()
                # A server of Postgres that has ended is its postmaster's.
                ended = used.children_user + used.children_system if kind == "postgres" else 0.0
                times[kind] += used.user + used.system + ended
        except psutil.Error:  # it has ended
            continue
    return times


def _kind(process: psutil.Process) -> str | None:
    words = " ".join(process.cmdline())
    return next((kind for word, kind in _KINDS.items() if word in words), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="steady state of each round")
    options = parser.parse_args()
    environment = {"MILLRACE_STUB_STEP_MS": str(STEP_MS), "MILLRACE_STUB_SLOTS": str(CONCURRENCY)}
    with Cluster(worker_environment=environment) as cluster:
        tenant = cluster.create_tenant("bench", credit_micros=10**15)
        client = PlatformClient(cluster.url, tenant, model="demo")
        client.throughput(seed=99, ramp_s=0, seconds=3)
        costs = []
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
            costs.append(measure(client, seed=number, seconds=options.seconds))
    finish(_figures(costs), as_json=options.json)


def _figures(costs: list[Cost]) -> dict[str, object]:
    figures: dict[str, object] = {}
    kinds = [kind for kind in costs[0].us_per_token if kind != "client"]
    for kind in (*kinds, "client"):
        figures[f"{kind}_us_per_token"] = median_of([c.us_per_token[kind] for c in costs], 1)
    totals = [sum(cost.us_per_token[kind] for kind in kinds) for cost in costs]
    return {
        "overhead_us_per_token": median_of(totals, 1),
        "overhead_us_per_token_range": range_of(totals, 1),
        **figures,
        "tok_s": median_of([cost.tokens_per_second for cost in costs], 1),
        "rounds": len(costs),
        "machine": machine(),
    }


if __name__ == "__main__":
    main()
