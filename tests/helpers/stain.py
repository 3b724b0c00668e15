"""Drawn tissue for the stain tests: two known stains on glass, with noise."""

from __future__ import annotations

import numpy as np
import torch

from fastmtl.reference.stain_conventions import HEMATOXYLIN_EOSIN


def tissue(seed: int = 0, size: int = 64, number: int = 1, glass: float = 0.3) -> torch.Tensor:
    """Uint8 [number, 3, size, size] of two stains in smooth amounts, with glass and noise."""
    source = np.random.default_rng(seed)
    vectors = np.array(HEMATOXYLIN_EOSIN) * [[1, 1.1], [0.95, 1], [1.05, 0.9]]
    amounts = source.gamma(2.0, 0.25, (number, 2, size // 4, size // 4)).repeat(4, 2).repeat(4, 3)
    amounts *= (source.random((number, 1, size // 4, size // 4)).repeat(4, 2).repeat(4, 3)) > glass
    light = 245 * np.exp(-np.einsum("ck,bkhw->bchw", vectors, amounts)) + source.normal(0, 2, (number, 3, size, size))
    return torch.from_numpy(light.clip(0, 255).astype(np.uint8))


def odd_tiles() -> torch.Tensor:
    """Blank, black, grey, one stain, blue marker pen, noise, and tissue with a pen stroke; the last two have stains."""
    colours = torch.tensor([[255, 255, 255], [0, 0, 0], [120, 120, 120], [200, 100, 180], [0, 0, 255]])
    flat = colours[:, :, None, None].expand(5, 3, 64, 64).byte()
    noise = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
    pen = tissue(seed=9)
    pen[..., 20:30, :] = torch.tensor([0, 0, 255], dtype=torch.uint8)[:, None, None]
    return torch.cat([flat, noise, pen])
