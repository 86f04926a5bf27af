"""Judges what transformers says of a load: a weight that no file gave is a random one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from transformers import PreTrainedModel

from workers.inference.engine.errors import EngineError


def check_loaded(model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """Raise EngineError unless every weight came from the files, or is tied to one that did.

    `report` is what `output_loading_info` gives; tied weights are not missing in it.
    """
    if missing := sorted(report["missing_keys"]):
        raise _refusal(
            f"its files lack {_count(missing)}: it has no head, another task's, or is not whole"
        )
    if mismatched := sorted(str(entry[0]) for entry in report["mismatched_keys"]):
        raise _refusal(f"its files hold {_count(mismatched)} in a shape that config.json denies")
    if errors := report["error_msgs"]:
        raise _refusal(f"its weights can't be read: {errors[0]}")
    if dropped := sorted(_of_its_layers(model, report["unexpected_keys"])):
        raise _refusal(f"its files hold {_count(dropped)}, for which config.json leaves no place")


def _of_its_layers(model: PreTrainedModel, unexpected: Collection[str]) -> list[str]:
    """Tensors that belong to a layer which has weights: a bias, a scale, half an adapter.

    Without them it computes something else. Whole modules that the model doesn't have (towers for
    pictures, heads that predict more tokens) are nothing to it.
    """
    with_weights = {
        name
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False)) and not any(module.children())
    }
    return [name for name in unexpected if name.rpartition(".")[0] in with_weights]


def _count(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} tensors such as {names[0]}"


def _refusal(message: str) -> EngineError:
    return EngineError("model_unsupported", message)
