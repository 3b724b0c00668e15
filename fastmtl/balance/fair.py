"""Nash-MTL and FairGrad: bargaining solutions, G w = w^(-1/alpha)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastmtl.ops.gradients import matrix_solvers

from .gradient_balancer import GradientBalancer
from .gramian import cosines, gramian, mask_inactive


class FairGrad(GradientBalancer):
    """Fair resource allocation of Ban & Ji, ICML 2024, equation 4: w > 0 with G w = w^(-1/alpha).

    This is alpha-fairness of the tasks' progress: alpha = 1 is proportional fairness (the Nash solution), alpha to
    infinity is max-min, alpha to 0 is the mean gradient. The authors' code calls scipy's least squares from a uniform
    start, which may stop early. This class takes damped Newton steps on the equivalent convex problem, on the cosines
    of the gradients. If the convex hull of the gradients contains 0, there is no solution: w is large and w^T J near 0.

    Args:
        alpha: degree of fairness, > 0.

    Raises:
        ValueError: `alpha` is not positive.

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
    """Nash bargaining solution of Navon et al., ICML 2022, claim 3.1: w > 0 with G w = 1 / w.

    The squared norm of the update is always the number of active tasks. The authors' code then clips the update to
    `max_norm`, and solves the problem with at most 20 convex approximations; this class solves it as `FairGrad` does.

    Args:
        max_norm: largest norm of the update, 1 in the authors' code and LibMTL; None does not clip (the paper).

    Raises:
        ValueError: `max_norm` is not positive.

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
    """With y = norms w the problem is C y = norms^(1/alpha - 1) / y^(1/alpha), where C holds the cosines. Dividing the
    norms by their geometric mean s multiplies y by s^((p - 1) / (p + 1))."""
    C, norms, active = cosines(G)
    p = 1 / alpha
    logs = norms.log()
    middle = torch.where(active, logs, 0.0).sum() / active.sum().clamp(min=1)
    r = torch.where(active, ((p - 1) * (logs - middle)).exp(), 1.0)
    y = matrix_solvers.equilibrium(C, r, p)
    w = y / norms * ((p - 1) / (p + 1) * middle).exp()
    return mask_inactive(w, G, active)
