"""Judges what transformers says of a load: a weight that no file gave is a random one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from workers.inference.engine.errors import EngineError

# What old files hold of each layer and models compute for themselves.
_COMPUTED = frozenset({"masked_bias", "inv_freq"})


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
    _check_numbers(model)


def _check_numbers(model: PreTrainedModel) -> None:
    """A token whose embedding is broken need not occur in any probe."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.numel():
            extremes = torch.stack(torch.aminmax(weight.detach()))
            if not extremes.isfinite().all():
                raise _refusal(f"{name} holds what is no number")


def _of_its_layers(model: PreTrainedModel, unexpected: Collection[str]) -> list[str]:
    """Tensors of layers: a bias, a scale, a norm, half an adapter, or a whole layer too many.

    Without them it computes something else. Modules beside its layers that the model doesn't have
    (towers for pictures, heads that predict more tokens) are nothing to it.
    """
    prefix = f"{model.base_model_prefix}."
    modules = {name.removeprefix(prefix): module for name, module in model.named_modules()}
    num_more = getattr(model.config.get_text_config(), "num_nextn_predict_layers", None) or 0
    return [name for name in unexpected if _is_layers(name.removeprefix(prefix), modules, num_more)]


def _is_layers(name: str, modules: Mapping[str, torch.nn.Module], num_more: int) -> bool:
    """`num_more`: layers behind the last that predict more tokens."""
    owner, _, last = name.rpartition(".")
    if owner in modules and _is_layer(modules[owner]):
        return True
    if last in _COMPUTED or (last == "bias" and owner in modules):  # a mask: it has no weights
        return False
    parts = name.split(".")
    for i in (i for i, part in enumerate(parts) if part.isdecimal()):
        stack = modules.get(".".join(parts[:i]))
        if isinstance(stack, torch.nn.ModuleList):
            return not len(stack) <= int(parts[i]) < len(stack) + num_more
    return False


def _is_layer(module: torch.nn.Module) -> bool:
    has_weights = any(True for _ in module.parameters(recurse=False))
    return has_weights and not any(module.children())


def _count(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} tensors such as {names[0]}"


def _refusal(message: str) -> EngineError:
    return EngineError("model_unsupported", message)
