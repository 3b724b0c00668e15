"""UPGrad: each gradient is projected onto the cone of directions that increase no task's loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastmtl.ops.gradients import matrix_solvers

from .gradient_balancer import GradientBalancer
from .gramian import cosines, given_weights, gramian, mask_inactive


class UPGrad(GradientBalancer):
    """Quinton & Rey, Jacobian Descent for Multi-Objective Optimization, 2024, equation 3 and proposition 1.

    Each g_i is projected onto the dual cone {d: <g_k, d> >= 0 for all k}; the update is the weighted sum of the
    projections. The projection of J^T u is J^T v with v = argmin over v >= u of v^T G v: one small quadratic program
    per task, solved to 1e-12. TorchJD adds 1e-4 of the trace to the diagonal of G; this class does not.

    Args:
        weights: task -> weight of its projection, or one per task in order; None gives each 1/K (the paper), where K
            counts active tasks.

    >>> UPGrad().weights(torch.tensor([[1.0, -1.0], [-1.0, 4.0]], dtype=torch.float64), {})
    tensor([1.0000, 0.6250], dtype=torch.float64)
    """

    def __init__(self, weights: Mapping[str, float] | Sequence[float] | None = None) -> None:
        super().__init__()
        self._given = weights

    def __repr__(self) -> str:
        return f"UPGrad(weights={self._given!r})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """w [K] float64, 0 for inactive tasks, from G [K, K] float64."""
        C, norms, active = cosines(G := gramian(G))
        share = given_weights(self._given, losses, norms)
        if self._given is None:
            share = share / active.sum().clamp(min=1)
        # v = u + x with x >= 0, in units of the gradient norms. Each u is a row of the identity; the result is scaled.
        both = active[:, None] & active
        H = torch.where(both, C, torch.eye(len(C), dtype=C.dtype, device=C.device))
        q = torch.where(active, H, 1.0)  # row i: H e_i
        x = matrix_solvers.nonnegative_qp(H.expand(len(C), -1, -1), q)
        v = torch.eye(len(C), dtype=C.dtype, device=C.device) + torch.where(both, x, 0.0)
        return mask_inactive((share * torch.where(active, norms, 0.0)) @ v / norms, G, active)
