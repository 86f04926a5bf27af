"""The training loop shared by the three models: AdamW, warm-up, cosine, one line of progress.

A run ends after a number of steps or after a number of minutes; the learning rate follows the
share that is done, so both end at zero.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from models.demo.packing import Shard

PROMPT_WEIGHT = 0.1  # loss of a prompt token beside 1.0 for a token of an answer
WARM_UP = 0.03  # share of the run
REPORT_EVERY_S = 10.0

LossOf = Callable[[], Tensor]


@dataclass(frozen=True)
class Plan:
    """How long a run is, and how fast it learns. Give `num_steps` or `minutes`."""

    name: str
    learning_rate: float
    num_steps: int | None
    minutes: float

    def share_done(self, step: int, elapsed_s: float) -> float:
        if self.num_steps is not None:
            return step / self.num_steps
        return elapsed_s / (self.minutes * 60)


@dataclass(frozen=True)
class Outcome:
    num_steps: int
    loss: float
    seconds: float


def precision(device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def rate_at(share: float) -> float:
    """The learning rate as a part of its peak."""
    if share < WARM_UP:
        return share / WARM_UP + 1e-3
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (share - WARM_UP) / (1 - WARM_UP))))


def optimizer_for(model: nn.Module, device: torch.device) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    scales = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=device.type == "cuda")


def fit(model: nn.Module, plan: Plan, device: torch.device, loss_of: LossOf) -> Outcome:
    """Steps until the plan is done. `loss_of` draws the next batch and returns its loss."""
    optimizer = optimizer_for(model, device)
    started = reported = time.monotonic()
    step, mean_loss = 0, 0.0
    while (share := plan.share_done(step, time.monotonic() - started)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * rate_at(share)
        loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 10 == 0:
            # Reading the loss waits for the device, which also keeps the clock honest.
            mean_loss = loss.item() if not mean_loss else 0.9 * mean_loss + 0.1 * loss.item()
        if time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            _report(plan, step, share, mean_loss, reported - started)
    seconds = time.monotonic() - started
    _report(plan, step, 1.0, mean_loss, seconds)
    return Outcome(step, round(mean_loss, 4), round(seconds, 1))


def _report(plan: Plan, step: int, share: float, loss: float, elapsed_s: float) -> None:
    bar = "#" * round(20 * share)
    left_s = elapsed_s * (1 - share) / max(share, 1e-3)
    print(
        f"{plan.name:10} [{bar:20}] {share:4.0%}  step {step}  loss {loss:.4f}  "
        f"{elapsed_s:.0f} s, {left_s:.0f} s left",
        flush=True,
    )


def chat_loss(model: nn.Module, batch: Shard, device: torch.device) -> Tensor:
    """Next-token loss, in which answers weigh more than prompts."""
    ids = torch.from_numpy(batch.ids.astype("int64")).to(device, non_blocking=True)
    is_answer = torch.from_numpy(batch.is_answer).to(device, non_blocking=True)
    with precision(device):
        logits = model(input_ids=ids, use_cache=False).logits
    losses = F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    weights = PROMPT_WEIGHT + (1 - PROMPT_WEIGHT) * is_answer[:, 1:].flatten().float()
    return (losses * weights).sum() / weights.sum()


def fit_chat(
    model: LlamaForCausalLM, plan: Plan, device: torch.device, batches: Iterator[Shard]
) -> Outcome:
    model.to(device).train()
    return fit(model, plan, device, lambda: chat_loss(model, next(batches), device))
