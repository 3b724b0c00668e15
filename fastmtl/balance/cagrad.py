"""CAGrad: the direction near the mean gradient that improves the worst task most."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..ops.core.backends import Implementation, choose, register
from ..ops.core.constants import to_device
from .gradient_balancer import GradientBalancer
from .gramian import gramian, least_norm, mask_inactive

_STOPS_EARLY = ("cpu",)  # on a GPU the test would make the host wait for the device
_STEPS = 24  # of a bracketing secant: 8 to 15 reach rounding
_STATIONARY = 1e-6  # lengths below this, of the gradients' size, are 0
_RESCALE = {"none": lambda c: 1.0, "linear": lambda c: 1 + c, "square": lambda c: 1 + c * c}


class CAGrad(GradientBalancer):
    """Conflict-averse gradient descent: maximise min_i <g_i, d> over |d - g0| <= c |g0|, with g0 the mean gradient.

    Source: Liu et al., NeurIPS 2021, algorithm 1.

    v = argmin over the simplex of v^T G 1/K + c |g0| sqrt(v^T G v), and w = 1/K + c |g0| v / sqrt(v^T G v). At a
    Pareto-stationary point this is 0/0, and the update is 0.

    No general solver is needed: v is also the shortest vector in the convex hull of the g_i + t g0 for t = |J^T v| /
    (c |g0|). |J^T v(t)| / t decreases with t, so a secant method finds t.

    Args:
        c: the radius; the paper uses 0.4 to 0.5 and proves convergence for c < 1. 0 gives the mean gradient.
        rescale: "none" (the paper), "square" divides by 1 + c^2 (the authors' code and LibMTL), "linear" by 1 + c.

    Raises:
        ValueError: c is negative, or `rescale` is not one of these.

    >>> CAGrad().weights(torch.eye(2, dtype=torch.float64), {})
    tensor([0.7500, 0.7500], dtype=torch.float64)
    """

    def __init__(self, c: float = 0.5, *, rescale: str = "none") -> None:
        if not c >= 0:
            raise ValueError(f"`c` must not be negative; got {c}.")
        if rescale not in _RESCALE:
            raise ValueError(f"`rescale` must be one of {', '.join(_RESCALE)}; got {rescale!r}.")
        super().__init__()
        self.c, self.rescale = c, rescale

    def __repr__(self) -> str:
        return f"CAGrad(c={self.c}, rescale={self.rescale!r})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """w [K] float64, 0 for inactive tasks, from G [K, K] float64."""
        G = gramian(G)
        active = G.diagonal() != 0
        count = active.sum().clamp(min=1)
        mean = active.to(G.dtype) / count
        if self.c == 0:
            return mask_inactive(mean, G, active)
        options = to_device((self.c, 1 / _RESCALE[self.rescale](self.c), _STATIONARY), G.device)
        return choose("cagrad", "auto", G)(G, options, _STEPS)


def _weights(G: Tensor, options: Tensor, steps: int) -> Tensor:
    """options [3]: c, what the result is multiplied by, and the length below which a vector is 0."""
    c, rescale, least = options
    active = G.diagonal() != 0
    mean = active.to(G.dtype) / active.sum().clamp(min=1)
    size = torch.where(active, G.diagonal(), 0.0).amax()
    A = torch.where(active[:, None] & active, G / torch.where(size > 0, size, 1.0), 0.0)
    towards = A @ mean  # <g_i, g0>
    radius = c * (mean @ towards).clamp(min=0).sqrt()

    def point(t: Tensor) -> tuple[Tensor, Tensor]:
        """v(t) and log(|J^T v| / (t radius)), which is 0 at the solution."""
        slant = t * towards
        v = least_norm(A + slant + slant[:, None] + t * t * (mean @ towards), active)
        length = (v @ A @ v).clamp(min=0).sqrt()
        return v, (length / (t * radius)).clamp(min=1e-300).log()

    low = least / radius  # |J^T v| / radius is between these two
    high = 2.0 / radius
    _, at_low = point(low)
    _, at_high = point(high)
    stationary = ~(at_low > 0) | ~(radius > least)
    low, high = low.log(), high.log()
    v, closest = mean, torch.full_like(radius, torch.inf)
    was_right, was_left = torch.zeros_like(stationary), torch.zeros_like(stationary)
    for _ in range(steps):
        middle = high - at_high * (high - low) / (at_high - at_low)
        outside = ~((middle > low) & (middle < high))
        middle = torch.where(outside, (low + high) / 2, middle)
        tried, found = point(middle.exp())
        v = torch.where(found.abs() < closest, tried, v)
        closest = torch.minimum(closest, found.abs())
        right = found < 0  # then the root is to the left: `middle` replaces `high`
        # Anderson and Bjorck: reduce the value at an end that was kept twice, or it would be kept forever.
        fade_low = torch.where(was_right, torch.where(found > at_high, 1 - found / at_high, 0.5), 1.0)
        fade_high = torch.where(was_left, torch.where(found < at_low, 1 - found / at_low, 0.5), 1.0)
        at_low = torch.where(right, at_low * fade_low, found)
        at_high = torch.where(right, found, at_high * fade_high)
        low, high = torch.where(right, low, middle), torch.where(right, middle, high)
        was_right, was_left = right, ~right
        if G.device.type in _STOPS_EARLY and not closest > 1e-13:
            break
    length = (v @ A @ v).clamp(min=0).sqrt()
    w = (mean + radius * v / torch.where(length > 0, length, 1.0)) * rescale
    return mask_inactive(torch.where(stationary, 0.0, w), G, active)


def _weights_triton(G: Tensor, options: Tensor, steps: int) -> Tensor:
    from fastmtl.kernels import cagrad_triton

    return cagrad_triton.cagrad(G.contiguous(), options, steps)


register(
    "cagrad",
    {
        "triton": Implementation(_weights_triton, "cuda", (torch.float64,)),
        "reference": Implementation(_weights, "any", (torch.float64,)),
    },
)
