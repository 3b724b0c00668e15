"""PCGrad: conflicting gradients are projected onto each other's normal planes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastmtl import ops
from fastmtl.ops.gradients.pcgrad import order_by

from .draws import Draws
from .gradient_balancer import GradientBalancer
from .gramian import gramian, mask_inactive


class PCGrad(GradientBalancer):
    """Gradient surgery of Yu et al. (NeurIPS 2020, algorithm 1) for the shared parameters of K tasks.

    Each task's gradient g_i is compared with the other tasks' original gradients g_j in a random order. If
    <g_i, g_j> < 0, the component of g_i along g_j is removed: g_i <- g_i - <g_i, g_j> / |g_j|^2 g_j. The update is the
    sum of the resulting g_i.

    Args:
        reduction: "sum" (the paper) or "mean", which divides by the number of tasks with a nonzero gradient.
        seed: of the random orders. They are a hash of seed, step and position, the same on every device. The step
            counter is on the device, so a replayed CUDA graph draws new orders. It is part of `state_dict`, so a
            resumed run draws the same orders as an uninterrupted one.
        with_self: compare each gradient with its own original too, as LibMTL and Pytorch-PCGrad do: a gradient that has
            been projected past its own normal plane then becomes 0. Only for comparison with them; it has no kernel.

    Raises:
        ValueError: `reduction` is not "sum" or "mean".

    >>> encoder, head_a, head_b = (torch.nn.Linear(4, n) for n in (4, 1, 2))
    >>> features = encoder(torch.ones(8, 4))
    >>> losses = {"a": head_a(features).mean(), "b": head_b(features).square().mean()}
    >>> balancer = PCGrad()
    >>> sorted(balancer.backward(losses, shared=encoder.parameters()))
    ['cosines', 'norms', 'weights']
    """

    def __init__(self, reduction: str = "sum", *, seed: int = 0, with_self: bool = False) -> None:
        if reduction not in ("sum", "mean"):
            raise ValueError(f"`reduction` must be 'sum' or 'mean'; got {reduction!r}.")
        super().__init__()
        self.reduction, self.with_self, self._seed = reduction, with_self, seed
        self._draws = Draws(seed)

    def __repr__(self) -> str:
        return f"PCGrad(reduction={self.reduction!r}, seed={self._seed}, with_self={self.with_self})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """w [K] float64 from G [K, K] float64; each call draws the next order."""
        G = gramian(G)
        order = self.next_order(len(G), G.device)
        self._draws.advance()
        w = ops.pcgrad_weights(G, order, reduction=self.reduction, with_self=self.with_self)
        return mask_inactive(w, G, G.diagonal() != 0)

    def next_order(self, K: int, device: torch.device) -> Tensor:
        """The order of the next step, in the format of `ops.pcgrad_weights`."""
        return order_by(self._draws.uniform(K * K, device).view(K, K), with_self=self.with_self)

    def state_dict(self) -> dict[str, Any]:
        """The tasks' names, and the seed and step of the orders."""
        return super().state_dict() | {"draws": self._draws.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._draws.load_state_dict(state["draws"])
