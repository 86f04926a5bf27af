"""Moves what the host has decided to the device, without waiting for the device."""

from __future__ import annotations

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on `device`; the tensor itself where that is the CPU.

    From pinned memory a copy takes its place behind what the device is doing; from ordinary memory
    the host would wait until all of that is done.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
