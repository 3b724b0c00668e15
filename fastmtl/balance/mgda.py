"""MGDA: the shortest vector in the convex hull of the gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .base import values
from .gradient_balancer import GradientBalancer
from .gramian import gramian, least_norm, mask_inactive

_NORMALIZATIONS = ("none", "l2", "loss", "loss+")


class MGDA(GradientBalancer):
    """Multiple-gradient descent: w = argmin over the simplex of w^T G w.

    Source: Désidéri, C. R. Math. 350 (2012), theorem 1; for neural networks Sener & Koltun, NeurIPS 2018, equation 3.
    Their Frank-Wolfe solver stops at a change of 1e-3. This class solves two tasks in closed form, and more tasks to
    1e-12 with an interior-point method whose number of steps does not depend on the gradients.

    Args:
        normalization: what each gradient is divided by before solving for the weights, as Sener & Koltun's code does:
            "none" (the paper), "l2" its norm, "loss" the task's loss, "loss+" both. The weights are applied to the
            original gradients.

    Raises:
        ValueError: `normalization` is not one of these.

    >>> MGDA().weights(torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=torch.float64), {})
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """

    def __init__(self, normalization: str = "none") -> None:
        if normalization not in _NORMALIZATIONS:
            raise ValueError(f"`normalization` must be one of {', '.join(_NORMALIZATIONS)}; got {normalization!r}.")
        super().__init__()
        self.normalization = normalization

    def __repr__(self) -> str:
        return f"MGDA(normalization={self.normalization!r})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """w [K] float64 with sum 1, 0 for inactive tasks, from G [K, K] float64."""
        G = gramian(G)
        active = G.diagonal() != 0
        scaled = G
        if self.normalization in ("l2", "loss+"):
            norms = torch.where(active, G.diagonal(), 1.0).sqrt()
            scaled = scaled / norms / norms[:, None]
        if self.normalization in ("loss", "loss+"):
            sizes = torch.where(active, values(losses), 1.0)
            scaled = scaled / sizes / sizes[:, None]
        return mask_inactive(least_norm(scaled, active), G, active)
