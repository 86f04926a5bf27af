"""Trains the demo models from nothing, on text that this folder writes itself.

    python -m models.demo.train --out /tmp/demo-models

On one H100 it takes about 9 minutes; on two CPU cores training stops after 75 and an evaluation
follows. A GPU is used when there is one.
A run bounded by minutes depends on the speed of the machine; `--steps` gives the same batches on
any machine. `--eval-only` prints the figures of models that are already in the output folder.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from models.demo import contrast, evaluation, networks
from models.demo.learning import Outcome, Plan, fit_chat
from models.demo.packing import Shard, Shards
from models.demo.tokens import save_tokenizer, train_tokenizer

# name, share of the time, peak learning rate
RUNS = (("demo", 0.66, 2e-3), ("demo-mini", 0.22, 3e-3), ("demo-embed", 0.12, 2e-3))
DEFAULTS = {  # by device: minutes of training, shards, tokens in a batch
    "cuda": (6.8, 1_600, 65_536),
    "cpu": (75.0, 40, 8_192),
}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m models.demo.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the three models")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--device", default="auto", help="auto, cuda or cpu")
    parser.add_argument("--minutes", type=float, help="training time of all three (75; GPU 6.8)")
    parser.add_argument("--steps", help="steps of the three, as in 5000,3000,900")
    parser.add_argument("--shards", type=int, help="shards of 262,144 tokens (40; GPU 1600)")
    parser.add_argument("--batch-tokens", type=int, help="tokens in a batch (8192; GPU 65536)")
    parser.add_argument(
        "--continue-from",
        type=Path,
        help="folder of earlier models: the chat models go on from them with their tokenizer",
    )
    parser.add_argument("--eval-only", action="store_true", help="only evaluate what is in --out")
    return parser.parse_args(arguments)


def plans(args: argparse.Namespace, minutes: float) -> list[Plan]:
    steps: list[int | None] = [None] * len(RUNS)
    if args.steps:
        steps = [int(number) for number in args.steps.split(",")]
    return [
        Plan(name, rate, num_steps, minutes * share)
        for (name, share, rate), num_steps in zip(RUNS, steps, strict=True)
    ]


def train(args: argparse.Namespace, device: torch.device) -> dict[str, Outcome]:
    minutes, num_shards, batch_tokens = DEFAULTS[device.type]
    batch_tokens = args.batch_tokens or batch_tokens
    tokenizer = first_tokenizer(args)
    save_tokenizer(tokenizer, args.out / "demo")
    num_makers = max(1, (os.cpu_count() or 2) - 1)
    tokenizer_file = args.out / "demo" / "tokenizer.json"
    shards = Shards(args.seed, tokenizer_file, args.shards or num_shards, num_makers)
    outcomes = {}
    try:
        for plan in plans(args, args.minutes or minutes):
            batches = shards.batches(batch_tokens)
            if plan.name == "demo-embed" and args.continue_from:
                shutil.copytree(
                    args.continue_from / plan.name, args.out / plan.name, dirs_exist_ok=True
                )
            elif plan.name == "demo-embed":
                outcomes[plan.name] = train_embedding(plan, args, device, tokenizer)
            else:
                outcomes[plan.name] = train_chat(plan, args, device, tokenizer, batches)
    finally:
        shards.close()
    return outcomes


def first_tokenizer(args: argparse.Namespace) -> Tokenizer:
    """A new one, or that of the models to go on from: ids must keep their meaning."""
    if args.continue_from:
        return Tokenizer.from_file(str(args.continue_from / "demo" / "tokenizer.json"))
    return train_tokenizer(args.seed)


def train_chat(
    plan: Plan,
    args: argparse.Namespace,
    device: torch.device,
    tokenizer: Tokenizer,
    batches: Iterator[Shard],
) -> Outcome:
    if args.continue_from:
        model = networks.load_chat_model(args.continue_from / plan.name)
    else:
        model = networks.new_chat_model(plan.name, args.seed)
    outcome = fit_chat(model, plan, device, batches)
    networks.save(model, tokenizer, args.out / plan.name)
    return outcome


def train_embedding(
    plan: Plan, args: argparse.Namespace, device: torch.device, tokenizer: Tokenizer
) -> Outcome:
    encoder = networks.new_encoder(plan.name, args.seed)
    outcome = contrast.fit_embedding(encoder, tokenizer, plan, device, args.seed)
    networks.save(encoder, tokenizer, args.out / plan.name)
    return outcome


def evaluate(folder: Path, device: torch.device) -> dict[str, Any]:
    return {
        "demo": evaluation.evaluate_chat(folder / "demo", device),
        "demo-mini": evaluation.evaluate_chat(folder / "demo-mini", device),
        "demo-embed": evaluation.evaluate_embedding(folder / "demo-embed", device),
    }


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    chosen = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(chosen if args.device == "auto" else args.device)
    torch.set_float32_matmul_precision("high")
    outcomes = {} if args.eval_only else train(args, device)
    results = evaluate(args.out, device)
    for name, outcome in outcomes.items():
        results[name] |= {"steps": outcome.num_steps, "seconds": outcome.seconds}
    evaluation.print_results(results)
    if outcomes:
        evaluation.write_results(results, args.out / "eval.json")


if __name__ == "__main__":
    main(sys.argv[1:])
