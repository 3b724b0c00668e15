"""Definition of `eigh` for the small symmetric matrices of the balancing methods."""

import torch
from torch import Tensor


def eigh(G: Tensor) -> tuple[Tensor, Tensor]:
    """G [K, K] float64 -> eigenvalues [K] ascending, eigenvectors [K, K] in columns; NaN where G is not finite."""
    bad = 0.0 * G.sum()
    values, vectors = torch.linalg.eigh(G.nan_to_num(0.0, 0.0, 0.0))  # which raises on NaN
    return values + bad, (vectors + bad).contiguous()
