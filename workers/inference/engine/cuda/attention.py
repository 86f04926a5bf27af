"""The kernels as an attention function of transformers' interface."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from workers.inference.engine.attention import refuse_unknown
from workers.inference.engine.cuda.launch import Formula, attend, write_pages
from workers.inference.engine.cuda.plan import StepPlan

ATTENTION_NAME = "millrace_kernels"


def use_kernels(model: PreTrainedModel) -> None:
    """Let a model's attention go through the kernels."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, kernel_attention)
    model.set_attn_implementation(ATTENTION_NAME)


def kernel_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    step_plan: StepPlan,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer. query [1, heads, T, D], key and value [1, kv_heads, T, D].

    Returns [1, T, heads, D]. Writes the new keys and values to the cache first.
    """
    refuse_unknown(attention_mask, kwargs)
    layer = module.layer_idx
    assert isinstance(layer, int)
    pages = step_plan.cache.keys[layer], step_plan.cache.values[layer]
    formula = Formula(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window or 0,
        softcap=softcap or 0.0,
    )
    write_pages(pages, key[0], value[0], step_plan.slots)
    return attend(query[0], pages, step_plan, formula).unsqueeze(0), None
