"""What computes a batch: transformers' modules (torch_forward.py) or compiled code (native/)."""

from __future__ import annotations

from typing import Protocol

import torch

from workers.inference.engine.scheduler import Batch


class Forward(Protocol):
    """Computes a batch over a KV cache of its own. Device thread only."""

    @property
    def num_pages(self) -> int:
        """Pages of the KV cache."""
        ...

    def run(self, batch: Batch) -> torch.Tensor:
        """Logits float32 [rows, vocab_size] of the batch's `sampled`, then of its `scored_rows`.
        Valid until the next run.
        """
        ...
