"""Gradient matrices J [K, P] sampled by rank and scale, hard ones by construction, and the paper's PCGrad."""

from __future__ import annotations

import torch
from torch import Tensor


def gradients(
    K: int, P: int, *, rank: int | None = None, scale: float = 1.0, dtype=torch.float32, seed: int = 0
) -> Tensor:
    """[K, P] of the given rank; row norms spread over a factor of 100 around `scale`."""
    source = torch.Generator().manual_seed(seed)
    rank = min(K, P) if rank is None else rank
    J = torch.randn(K, rank, generator=source, dtype=torch.float64) @ torch.randn(
        rank, P, generator=source, dtype=torch.float64
    )
    spread = 10 ** (2 * torch.rand(K, 1, generator=source, dtype=torch.float64) - 1)
    return (J * spread * scale).to(dtype)


def near_opposed(P: int, difference: float, sign: float = -1.0, seed: int = 0) -> Tensor:
    """[2, P] float32: the second gradient is the first times `sign`, but for a relative `difference`."""
    source = torch.Generator().manual_seed(seed)
    g = torch.randn(P, generator=source)
    noise = torch.randn(P, generator=source)
    return torch.stack([g, sign * g + difference * noise])


def orders(K: int, seed: int = 0) -> Tensor:
    """int64 [K, K-1]: row i a permutation of the tasks other than i."""
    source = torch.Generator().manual_seed(seed)
    rows = [[j for j in torch.randperm(K, generator=source).tolist() if j != i] for i in range(K)]
    return torch.tensor(rows, dtype=torch.int64).view(K, K - 1)


def textbook_pcgrad(J: Tensor, order: Tensor) -> Tensor:
    """Yu et al. 2020, algorithm 1, on full gradients: the sum of the projected ones, [P] in J's dtype."""
    total = torch.zeros_like(J[0])
    for i in range(J.shape[0]):
        projected = J[i].clone()
        for j in order[i].tolist():
            product = torch.dot(projected, J[j])
            if product < 0:
                projected -= product / torch.dot(J[j], J[j]) * J[j]
        total += projected
    return total
