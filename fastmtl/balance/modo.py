"""MoDo: one step of MGDA's weights at each step, with gradients of independent batches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .batch_pairs import BatchPairs
from .gramian import gramian, mask_inactive, project_on_simplex


class MoDo(BatchPairs):
    """Multi-objective gradient with double sampling, Chen et al., NeurIPS 2023, algorithm 2.

    w <- projection of w - lr (A + rho I) w onto the simplex. A = J1 J2^T holds the inner products of gradients from
    independent batches: give it two or more micro-batches (`last=False`) per step, with the same `scale`. The update is
    w^T J with J of all of them; the authors' code and LibMTL take J of a third batch. A step with one batch uses its
    biased Gram matrix.

    Args:
        lr: gamma, rate of w; 0.001 in LibMTL, 0.1 in TorchJD. The step is proportional to the squared gradients.
        rho: L2 regularisation of w; 0.1 in LibMTL and TorchJD.

    Raises:
        ValueError: `lr` is not positive, or `rho` is negative.

    >>> G = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    >>> MoDo(lr=0.25, rho=0.0).weights(G, {})
    tensor([0.6250, 0.3750], dtype=torch.float64)
    """

    state_names = ("w",)

    def __init__(self, lr: float = 1e-3, *, rho: float = 0.1) -> None:
        if not lr > 0 or not rho >= 0:
            raise ValueError(f"`lr` must be positive and `rho` not negative; got {lr}, {rho}.")
        super().__init__()
        self.lr, self.rho = lr, rho
        self._w: Tensor | None = None

    def __repr__(self) -> str:
        return f"MoDo(lr={self.lr}, rho={self.rho})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """w [K] float64 from A [K, K] float64, which need not be symmetric; updates w."""
        A = gramian(G)
        active = A.diagonal() != 0
        held = self._hold("w", active.to(A.dtype) / active.sum().clamp(min=1))
        before = project_on_simplex(held, active)  # without the tasks that have no labels
        w = project_on_simplex(before - self.lr * (A @ before + self.rho * before), active)
        # A skipped step changes no state, and a task without labels keeps its entry.
        held.copy_(torch.where(A.isfinite().all() & active, w, held))
        return mask_inactive(w, A, active)
