"""The regression losses beside torch's, and inputs of them."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional as F

from fastmtl import ops
from helpers.inputs import generator

LOSSES = {
    "mse": (ops.mse_loss, F.mse_loss, "squared"),
    "l1": (ops.l1_loss, F.l1_loss, "absolute"),
    "smooth": (partial(ops.smooth_l1_loss, beta=0.7), partial(F.smooth_l1_loss, beta=0.7), "smooth"),
}


def pair(shape, dtype=torch.float32, target_dtype=torch.float32, seed=0):
    """Predictions around targets: images of 0 to 255 where the target is an integer, else numbers around 0."""
    source = generator(seed)
    target = torch.randn(shape, generator=source)
    if not target_dtype.is_floating_point:
        target = torch.randint(2 if target_dtype == torch.bool else 256, shape, generator=source)
    input = target + 2 * torch.randn(shape, generator=source)
    return input.to(dtype), target.to(target_dtype)
