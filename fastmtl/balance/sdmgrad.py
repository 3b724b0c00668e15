"""SDMGrad: weights from the inner products of gradients of independent batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..ops.core.backends import Implementation, choose, register
from .batch_pairs import BatchPairs
from .gramian import given_weights, gramian, mask_inactive, project_on_simplex


class SDMGrad(BatchPairs):
    """Direction-oriented multi-objective learning of Xiao et al., NeurIPS 2023, algorithm 1.

    v descends on the simplex along A (v + strength u), and w = (v + strength u) / (1 + strength). A = J1 J2^T holds the
    inner products of gradients from independent batches: give it two or more micro-batches (`last=False`) per step,
    with the same `scale`. A step with one batch uses its biased Gram matrix.

    Args:
        strength: lambda, the pull towards the direction u; 0.3 in the authors' experiments and LibMTL.
        weights: u, task -> weight or one per task in order; 1/K each if None.
        lr, momentum, steps: of the descent on v. A is first divided by the squared mean norm, as in the authors' code.

    Raises:
        ValueError: an option is out of range.

    >>> G = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    >>> SDMGrad(strength=0.0, lr=0.1, steps=200).weights(G, {})
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """

    state_names = ("point",)

    def __init__(
        self,
        strength: float = 0.3,
        *,
        weights: Mapping[str, float] | Sequence[float] | None = None,
        lr: float = 10.0,
        momentum: float = 0.5,
        steps: int = 20,
    ) -> None:
        for name, value, fits in (
            ("strength", strength, strength >= 0),
            ("lr", lr, lr > 0),
            ("momentum", momentum, 0 <= momentum < 1),
            ("steps", steps, steps >= 1),
        ):
            if not fits:
                raise ValueError(
                    f"`{name}` is out of range: strength >= 0, lr > 0, 0 <= momentum < 1, steps >= 1; got {value}."
                )
        super().__init__()
        self.strength, self.lr, self.momentum, self.steps, self._given = strength, lr, momentum, steps, weights
        self._point: Tensor | None = None  # v [K]

    def __repr__(self) -> str:
        rest = f"lr={self.lr}, momentum={self.momentum}, steps={self.steps}"
        return f"SDMGrad(strength={self.strength}, weights={self._given!r}, {rest})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """w [K] float64 from A [K, K] float64, which need not be symmetric; updates v."""
        A = gramian(G)
        active = A.diagonal() != 0
        count = active.sum().clamp(min=1)
        pull = torch.where(active, given_weights(self._given, losses, A.diagonal()), 0.0)
        if self._given is None:
            pull = pull / count
        pull = self.strength * pull
        start = self._hold("point", active.to(A.dtype) / count)
        size = A.diagonal().clamp(min=0).sqrt().sum() / count
        scaled = torch.where(active[:, None] & active, A / torch.where(size > 0, size * size, 1.0), 0.0)
        v = choose("sdmgrad", "auto", A)(scaled, pull, active, start, self.lr, self.momentum, self.steps)
        # A skipped step changes no state, and a task without labels keeps its entry of v.
        start.copy_(torch.where(A.isfinite().all() & active, v, start))
        return mask_inactive((v + pull) / (1 + self.strength), A, active)


def _descend(A: Tensor, pull: Tensor, active: Tensor, start: Tensor, lr: float, momentum: float, steps: int) -> Tensor:
    """v [K] after all steps from `start`, on the simplex of the active tasks."""
    v = project_on_simplex(start, active)
    speed = torch.zeros_like(v)
    for _ in range(steps):
        speed = momentum * speed + A @ (v + pull)
        v = project_on_simplex(v - lr * speed, active)
    return v


def _descend_triton(
    A: Tensor, pull: Tensor, active: Tensor, start: Tensor, lr: float, momentum: float, steps: int
) -> Tensor:
    from fastmtl.kernels import sdmgrad_triton

    return sdmgrad_triton.descend(A.contiguous(), pull, active, start, lr, momentum, steps)


register(
    "sdmgrad",
    {
        "triton": Implementation(_descend_triton, "cuda", (torch.float64,)),
        "reference": Implementation(_descend, "any", (torch.float64,)),
    },
)
