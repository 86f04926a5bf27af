"""Runs the measurements, one after another: each has servers of its own."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import abuse
from benchmarks.abuse import batch_memory, claims, lag, neighbours, tickets
from benchmarks.figures import finish, machine


def main() -> None:
    parser = argparse.ArgumentParser(
        description=abuse.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--only", help="parts to run, separated by commas")
    parser.add_argument("--rounds", type=int, default=5, help="of each kind of abuse")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each arm of a round")
    parser.add_argument("--queued", type=int, default=1_500_000, help="jobs before each claim")
    parser.add_argument("--finished", type=int, default=1_000_000, help="jobs of the past year")
    options = parser.parse_args()
    parts = _parts(options)
    chosen = options.only.split(",") if options.only else list(parts)
    if unknown := [name for name in chosen if name not in parts]:
        parser.error(f"no part {unknown[0]}: there are {', '.join(parts)}")
    figures: dict[str, object] = {"load_before": os.getloadavg()[0], "machine": machine()}
    for name in chosen:
        print(f"{name} ...", file=sys.stderr, flush=True)
        figures |= parts[name]()
    finish(figures, as_json=options.json)


def _parts(options: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    return {
        "lag": lambda: lag.measure(rounds=options.rounds),
        "victim": lambda: neighbours.measure(rounds=options.rounds, seconds=options.seconds),
        "batches": batch_memory.measure,
        "claim": lambda: claims.measure(num_queued=options.queued, num_finished=options.finished),
        "tickets": tickets.measure,
    }


if __name__ == "__main__":
    main()
