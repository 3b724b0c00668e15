"""GradVac: gradients are moved towards a target cosine, a moving average over training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastmtl.ops.gradients.pcgrad import order_by

from .draws import Draws
from .gradient_balancer import GradientBalancer
from .gramian import gramian, mask_inactive


class GradVac(GradientBalancer):
    """Gradient vaccine of Wang et al., ICLR 2021, algorithm 1 and equation 2.

    Each task's gradient g_i is compared with the other tasks' original gradients g_j in a random order. If their cosine
    phi is below the target t_ij, g_i is moved to cosine t_ij by adding g_j times
    |g_i| (t sqrt(1 - phi^2) - phi sqrt(1 - t^2)) / (|g_j| sqrt(1 - t^2)). Then t_ij <- (1 - beta) t_ij + beta phi.
    The update is the sum of the resulting g_i. With t = 0 this is PCGrad.

    Args:
        beta: rate of the targets' moving average, 0 to 1; the paper uses 0.01, its code and LibMTL 0.5.
        always: update a target at every comparison (the paper) or, if False, only when the gradient changes (LibMTL).
        seed: of the random orders, as in `PCGrad`.

    Raises:
        ValueError: `beta` is not from 0 to 1.

    >>> GradVac().weights(torch.tensor([[1.0, -1.0], [-1.0, 4.0]], dtype=torch.float64), {})
    tensor([2.0000, 1.2500], dtype=torch.float64)
    """

    state_names = ("target",)

    def __init__(self, beta: float = 0.5, *, always: bool = True, seed: int = 0) -> None:
        if not 0 <= beta <= 1:
            raise ValueError(f"`beta` must be from 0 to 1; got {beta}.")
        super().__init__()
        self.beta, self.always, self._seed = beta, always, seed
        self._draws = Draws(seed)
        self._target: Tensor | None = None  # [K, K]

    def __repr__(self) -> str:
        return f"GradVac(beta={self.beta}, always={self.always}, seed={self._seed})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """w [K] float64 from G [K, K] float64; each call draws the next order and updates the targets."""
        G, K = gramian(G), len(gramian(G))
        order = order_by(self._draws.uniform(K * K, G.device).view(K, K))
        self._draws.advance()
        target = self._hold("target", torch.zeros_like(G))
        w, moved = vaccinate(G, order, target, self.beta, self.always)
        target.copy_(torch.where(G.isfinite().all(), moved, target))  # a skipped step changes no state
        return w

    def state_dict(self) -> dict[str, Any]:
        """The tasks' names, the targets, and the seed and step of the orders."""
        return super().state_dict() | {"draws": self._draws.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._draws.load_state_dict(state["draws"])


def vaccinate(G: Tensor, order: Tensor, target: Tensor, beta: float, always: bool) -> tuple[Tensor, Tensor]:
    """Return w [K] and the updated targets [K, K]; row i of `order` int64 [K, K-1] is a permutation of the other tasks.

    Row i of C holds the coefficients of g_i's expansion in the original gradients. The tasks do not depend on each
    other's comparisons, so the n-th comparison of all tasks is computed at once.
    """
    squares = G.diagonal()
    active = squares != 0
    C = torch.eye(len(G), dtype=G.dtype, device=G.device)
    for j in order.unbind(1):  # [K]: each task's partner
        pair = active & active[j]
        products = C @ G  # [K, K]: <g_i now, g_k>
        own = (products * C).sum(1).clamp(min=0).sqrt()
        theirs = squares[j].sqrt()
        lengths = own * theirs
        met = products.gather(1, j[:, None])[:, 0]
        phi = torch.where(lengths > 0, met / lengths, 0.0).clamp(-1, 1)
        wanted = target.gather(1, j[:, None])[:, 0]
        beside = (1 - wanted * wanted).sqrt()
        low = pair & (phi < wanted) & (beside > 0)
        step = own * (wanted * (1 - phi * phi).sqrt() - phi * beside) / (theirs * beside)
        C = C.scatter_add(1, j[:, None], torch.where(low, step, 0.0)[:, None])
        moving = pair if always else low
        moved = torch.where(moving, (1 - beta) * wanted + beta * phi, wanted)
        target = target.scatter(1, j[:, None], moved[:, None])
    return mask_inactive(torch.where(active[:, None], C, 0.0).sum(0), G, active), target
