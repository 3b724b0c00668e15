"""Nash-MTL and FairGrad: bargaining solutions, G w = w^(-1/alpha)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastmtl.ops.gradients import matrix_solvers

from .gradient_balancer import GradientBalancer
from .gramian import cosines, gramian, mask_inactive


class FairGrad(GradientBalancer):
    """Ban & Ji, ICML 2024, equation 4: w > 0 with G w = w^(-1/alpha), of alpha-fairness among the tasks' progress.

    alpha 1 is proportional fairness (Nash's solution), alpha to infinity max-min; alpha to 0 the mean gradient. The
    authors' code calls scipy's least squares from a uniform start, which returns a point where it stopped; here damped
    Newton steps on the convex problem behind it, on the gradients' cosines. Where the gradients' hull holds 0 there is
    no solution, and w is large, with w^T J near 0.

    Args:
        alpha: > 0.

    Raises:
        ValueError: alpha is not positive.

    >>> FairGrad(alpha=2.0).weights(torch.diag(torch.tensor([1.0, 8.0], dtype=torch.float64)), {})
    tensor([1.0000, 0.2500], dtype=torch.float64)
    """

    def __init__(self, alpha: float = 1.0) -> None:
        if not alpha > 0:
            raise ValueError(f"`alpha` must be positive; got {alpha}.")
        super().__init__()
        self.alpha = alpha

    def __repr__(self) -> str:
        return f"{type(self).__name__}(alpha={self.alpha})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """w [K] float64, positive for active tasks, from G [K, K] float64."""
        return _solution(gramian(G), self.alpha)


class NashMTL(GradientBalancer):
    """Navon et al., ICML 2022, claim 3.1: w > 0 with G w = 1 / w, the Nash bargaining solution.

    The update's squared norm is the number of active tasks, whatever the gradients; the authors' code then shortens it
    to `max_norm`, and solves the problem by a sequence of convex approximations that it stops after 20.

    Args:
        max_norm: longest update, as the authors' code and LibMTL (1); None for the paper's own.

    Raises:
        ValueError: max_norm is not positive.

    >>> NashMTL(max_norm=None).weights(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)), {})
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """

    def __init__(self, max_norm: float | None = 1.0) -> None:
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"`max_norm` must be positive or None; got {max_norm}.")
        super().__init__()
        self.max_norm = max_norm

    def __repr__(self) -> str:
        return f"NashMTL(max_norm={self.max_norm})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """w [K] float64, positive for active tasks, from G [K, K] float64."""
        G = gramian(G)
        w = _solution(G, 1.0)
        if self.max_norm is None:
            return w
        return w * (self.max_norm / (w @ G @ w).clamp(min=0).sqrt()).clamp(max=1.0)


def _solution(G: Tensor, alpha: float) -> Tensor:
    """In y = norms w the problem is C y = norms^(1/alpha - 1) / y^(1/alpha), C the cosines; norms are taken relative to
    their geometric mean s, which multiplies y by s^((p - 1) / (p + 1))."""
    C, norms, active = cosines(G)
    p = 1 / alpha
    logs = norms.log()
    middle = torch.where(active, logs, 0.0).sum() / active.sum().clamp(min=1)
    r = torch.where(active, ((p - 1) * (logs - middle)).exp(), 1.0)
    y = matrix_solvers.equilibrium(C, r, p)
    w = y / norms * ((p - 1) / (p + 1) * middle).exp()
    return mask_inactive(w, G, active)
