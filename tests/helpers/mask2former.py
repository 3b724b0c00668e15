"""Predictions and targets of a small Mask2Former."""

from __future__ import annotations

import torch
from torch import Tensor

from helpers.inputs import generator

CLASSES, QUERIES, POINTS = 4, 9, 48


def predictions(samples: int, dtype=torch.float64, seed: int = 0, size: int = 16) -> tuple[Tensor, Tensor]:
    source = generator(seed)
    classes = torch.randn(samples, QUERIES, CLASSES + 1, generator=source, dtype=torch.float64)
    masks = torch.randn(samples, QUERIES, size, size, generator=source, dtype=torch.float64) * 3
    return classes.to(dtype).requires_grad_(), masks.to(dtype).requires_grad_()


def objects(counts: list[int], size: int = 40, seed: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    """Labels and uint8 masks, one disc each."""
    source = generator(seed)
    grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    labels = [torch.randint(CLASSES, (count,), generator=source) for count in counts]
    masks = []
    for count in counts:
        centres = torch.rand(count, 2, 1, 1, generator=source) * size
        masks.append(((grid - centres).square().sum(1) < (size / 4) ** 2).to(torch.uint8))
    return labels, masks
