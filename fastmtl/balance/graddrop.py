"""GradDrop: each element keeps the gradients of one sign, chosen at random with the sign's purity as probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.core.backends import Implementation, choose, register
from .draws import Draws, uniform
from .gradient_balancer import GradientBalancer
from .gramian import given_weights, gramian, mask_inactive

_CHUNK = 1 << 18  # columns at a time: intermediate results stay in the cache


class GradDrop(GradientBalancer):
    """Gradient sign dropout of Chen et al., NeurIPS 2020, algorithm 1, on the shared parameters' gradients.

    The purity of each element is P = (1 + sum_k g_k / sum_k |g_k|) / 2, and u is uniform in [0, 1). If u < P, the
    positive gradients are kept; if u > P, the negative ones. The other gradients are multiplied by `leak`.

    The method works on the elements, not on G, and needs one more pass over the gradients. The logged "weights" are the
    kept share of each task's squared gradient norm. The paper applies the method to the gradients of a shared layer's
    activations.

    Args:
        leak: one number for all tasks, or task -> leak, or one per task in order; from 0 (the paper) to 1 (the plain
            sum).
        seed: of the random numbers. They are a hash of seed, step and column: the same on every device and after a
            resume.

    Raises:
        ValueError: `leak` is not from 0 to 1.
    """

    strategies = ("sequential", "batched", "features")
    reusable = False
    sums_rows = False

    def __init__(self, leak: float | Mapping[str, float] | Sequence[float] = 0.0, *, seed: int = 0) -> None:
        given = list(leak.values()) if isinstance(leak, Mapping) else leak if isinstance(leak, Sequence) else [leak]
        if not all(0 <= value <= 1 for value in given):
            raise ValueError(f"`leak` must be from 0 to 1; got {leak}.")
        super().__init__()
        self.leak, self._seed, self._draws = leak, seed, Draws(seed)

    def __repr__(self) -> str:
        return f"GradDrop(leak={self.leak!r}, seed={self._seed})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """Ones [K] float64, 0 for inactive tasks: all gradients have the same weight before elements are dropped."""
        G = gramian(G)
        active = G.diagonal() != 0
        return mask_inactive(torch.ones_like(G.diagonal()), G, active)

    def _update(self, J: Tensor, w: Tensor, losses: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        if isinstance(self.leak, float | int):
            leak = torch.full_like(w, self.leak)
        else:
            leak = given_weights(self.leak, losses, w)
        first = self._ranks.offset() if self._split else 0
        out, kept = choose("graddrop", "auto", J)(J, w, leak, *self._draws.source(J.device), first)
        self._draws.advance()
        kept = self._over_columns(kept)
        squares = self._norms(J).square()
        return out, torch.where(squares > 0, kept / squares, 0.0) + 0.0 * squares.sum()

    def state_dict(self) -> dict[str, Any]:
        """The tasks' names, and the seed and step of the numbers."""
        return super().state_dict() | {"draws": self._draws.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._draws.load_state_dict(state["draws"])


def drop(J: Tensor, w: Tensor, leak: Tensor, u: Tensor) -> Tensor:
    """J [K, P] with dropped elements multiplied by their task's leak [K]; u [P] is uniform in [0, 1).

    Tasks with weight 0 in w [K] are ignored. Values that are not finite stay so: 0 times such a value is NaN.
    """
    J = J * w[:, None]
    total = J.abs().sum(0)
    purity = 0.5 * (1 + J.sum(0) / torch.where(total == 0, 1.0, total))
    kept = ((u < purity) & (J > 0)) | ((u > purity) & (J < 0))
    return J * torch.where(kept, 1.0, leak[:, None])


def _graddrop(J: Tensor, w: Tensor, leak: Tensor, step: Tensor, seed: int, first: int) -> tuple[Tensor, Tensor]:
    """The sum over tasks of what is kept [P], and its inner product with each task's gradient [K] float64."""
    out, kept = torch.empty_like(J[0]), torch.zeros_like(w)
    for start in range(0, J.shape[1], _CHUNK):
        part = J[:, start : start + _CHUNK]
        u = uniform(step, seed, part.shape[1], first + start).to(J.dtype)
        dropped = drop(part, w.to(J.dtype), leak.to(J.dtype), u)
        torch.sum(dropped, 0, out=out[start : start + _CHUNK])
        kept += (dropped * part).sum(1, dtype=torch.float64)
    return out, kept


def _graddrop_triton(J: Tensor, w: Tensor, leak: Tensor, step: Tensor, seed: int, first: int) -> tuple[Tensor, Tensor]:
    from fastmtl.kernels import graddrop_triton

    return graddrop_triton.graddrop(J, w.double(), leak.double(), step, seed, first)


register(
    "graddrop",
    {"triton": Implementation(_graddrop_triton, "cuda"), "reference": Implementation(_graddrop, "any")},
)
