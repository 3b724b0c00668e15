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
