"""Numbers of the host as tensors on a device, copied there once: a copy at every step would make the host wait, and a
CUDA graph would repeat it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def to_device(numbers: Sequence[float], device: torch.device) -> Tensor:
    """[n] float64 on `device`; do not write to it."""
    return _constant(tuple(numbers), device)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small float64 `tensor` on `device`, by its values if it is on the host; do not write to it."""
    if tensor.device == device or tensor.device.type != "cpu":
        return tensor.to(device)
    return to_device(tensor.flatten().tolist(), device).view(tensor.shape)


@lru_cache(maxsize=256)
def _constant(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # an inference tensor could not be used in a later backward
        return torch.tensor(numbers, dtype=torch.float64).to(device, non_blocking=True)
