"""Inputs of the softmax losses, sampled by construction: class maps of every dtype, masks of pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from helpers.inputs import generator

CLASS_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)
PIXEL_MASKS = ("none", "sample", "pixel", "nothing")


def class_map(
    shape: tuple[int, ...], dtype=torch.float32, target_dtype=torch.uint8, seed=0, ignored: int | None = None
) -> tuple[Tensor, Tensor]:
    """Logits [B, C, *spatial] that know the classes [B, *spatial] a little; about one pixel in six is `ignored`."""
    source = generator(seed)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=source)
    logits = torch.randn(shape, generator=source) * 3
    logits.scatter_add_(1, target.unsqueeze(1), torch.full((shape[0], 1, *shape[2:]), 2.0))
    if ignored is not None:
        target[torch.rand(target.shape, generator=source) < 1 / 6] = ignored
    return logits.to(dtype), target.to(target_dtype)


def pixel_mask(name: str, shape: tuple[int, ...], seed: int = 0) -> Tensor | None:
    """A mask of samples or pixels; about two in three are valid."""
    if name == "none":
        return None
    size = (shape[0],) if name == "sample" else (shape[0], *shape[2:])
    return (torch.rand(size, generator=generator(seed + 1)) < 0.67) & (name != "nothing")
