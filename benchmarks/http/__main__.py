"""Runs the three measurements; the arms of the first two by turns.

`--stock` runs the second and the third over sse-starlette's own response.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys

from benchmarks import http
from benchmarks.figures import finish, machine, median_of, range_of
from benchmarks.http.enqueue import accepted_per_s, empty_queues, sent_per_s
from benchmarks.http.fanout import platform_events_per_cpu_s, uvicorn_events_per_cpu_s
from benchmarks.http.idle import kib_per_stream
from tests.support.cluster import API_MODULE, Cluster

# All streams are of one tenant and one key.
_ONE_TENANT = {"MILLRACE_MAX_TENANT_WAITING": "20000", "MILLRACE_MAX_KEY_WAITING": "20000"}


def main() -> None:
    parser = argparse.ArgumentParser(description=http.__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each arm of P5")
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--stock", action="store_true", help="streams as sse-starlette sends them")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the API inherits it
    figures: dict[str, object] = {"load_before": os.getloadavg()[0], "machine": machine()}
    with Cluster(
        num_workers=0,
        num_billing=0,
        num_maintenance=0,
        environment=_ONE_TENANT,
        api_module="benchmarks.http.stock" if options.stock else API_MODULE,
    ) as cluster:
        tenant = cluster.create_tenant("bench", credit_micros=10**15)
        accepted_per_s(cluster, tenant, seconds=2.0)  # warm
        arms: dict[str, list[float]] = {"posts": [], "sends": [], "ours": [], "uvicorn": []}
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
            arms["posts"].append(accepted_per_s(cluster, tenant, seconds=options.seconds))
            empty_queues(cluster)
            arms["sends"].append(sent_per_s(cluster, seconds=options.seconds))
            empty_queues(cluster)
            arms["ours"].append(platform_events_per_cpu_s(cluster, tenant))
            arms["uvicorn"].append(uvicorn_events_per_cpu_s())
        figures |= _ratio("enqueue_vs_apply_async", arms["posts"], arms["sends"])
        figures |= _ratio("fanout_vs_uvicorn", arms["ours"], arms["uvicorn"])
        figures |= {f"{name}_per_s": median_of(values, 0) for name, values in arms.items()}
        kib, num_connections = kib_per_stream(cluster, tenant, num_streams=options.streams)
    figures |= {"kib_per_idle_stream": round(kib, 1), "redis_connections": num_connections}
    finish(figures | {"rounds": options.rounds}, as_json=options.json)


def _ratio(name: str, ours: list[float], peer: list[float]) -> dict[str, object]:
    ratios = [mine / theirs for mine, theirs in zip(ours, peer, strict=True)]
    return {name: median_of(ratios), f"{name}_range": range_of(ratios)}


if __name__ == "__main__":
    main()
