"""Momentum ConFIG: a conflict-free direction of moving averages, scaled by its own second moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastmtl import ops

from .gradient_ema import Averaged
from .spectral import ConFIG


class MomentumConFIG(Averaged):
    """M-ConFIG of Liu et al., ICLR 2025, algorithm 1: ConFIG of Adam's first moments, divided by a second moment.

    m_k is the bias-corrected moving average of task k's gradient, u = ConFIG(m). With f_t = (1 - beta1^t) u_t, the
    gradient that would have moved f_(t-1) to f_t is (f_t - beta1 f_(t-1)) / (1 - beta1); v is the bias-corrected moving
    average of its squares, and the update is u / (sqrt(v) + eps). The update has the size of Adam's: use SGD without
    momentum, or `beta2=None`, which returns u, with Adam.

    The paper updates one task's average per step to save backwards. Here a step updates those of all its tasks, as the
    authors' operator does when it is given all indices, and a task without labels is left out of the step.

    Args:
        beta1: weight of the old averages.
        beta2: weight of the old second moment; None returns u.
        weights, rtol: as for `ConFIG`.
        eps: added to sqrt(v).

    Raises:
        ValueError: an option is out of range.

    >>> MomentumConFIG().weights(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)), {})
    tensor([1.5000, 0.7500], dtype=torch.float64)
    """

    state_names = (*Averaged.state_names, "moves", "pseudo", "square")
    split_state = (*Averaged.split_state, "pseudo", "square")
    sums_rows = False

    def __init__(
        self,
        beta1: float = 0.9,
        beta2: float | None = 0.999,
        *,
        weights: Mapping[str, float] | Sequence[float] | None = None,
        rtol: float | None = None,
        eps: float = 1e-8,
    ) -> None:
        if not 0 <= beta1 < 1 or not (beta2 is None or 0 <= beta2 < 1) or not eps > 0:
            raise ValueError(
                "`beta1` must be from 0 to below 1, `beta2` too or None, and `eps` positive; "
                f"got {beta1}, {beta2}, {eps}."
            )
        super().__init__()
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self._config = ConFIG(weights, rtol=rtol)
        self._moves: Tensor | None = None  # float64: number of updates of the second moment
        self._pseudo: Tensor | None = None  # f [P]
        self._square: Tensor | None = None  # [P]: average of the squares, not corrected
        self._scale: Tensor | float | None = None  # of this step

    def __repr__(self) -> str:
        return f"MomentumConFIG(beta1={self.beta1}, beta2={self.beta2}, eps={self.eps}, {self._config!r})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """w [K] float64, 0 for inactive tasks, from the averages' G [K, K] float64; w^T m is u."""
        return self._config.weights(G, losses)

    def _rate(self, steps: Tensor) -> Tensor:
        return (1 - self.beta1) / (1 - self.beta1**steps)  # averages with this rate are Adam's corrected ones

    def _rows(
        self, J: Tensor, losses: Mapping[str, Tensor], scale: Tensor | float | None, active: Tensor | None
    ) -> Tensor:
        self._scale = scale
        return super()._rows(J, losses, scale, active)

    def _update(self, J: Tensor, w: Tensor, losses: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        flat, scale = ops.combine(J, w), self._scale
        if self.beta2 is None:
            return flat, w
        u = flat if scale is None else flat / scale
        if self._square is None or self._square.shape != u.shape:
            self._moves = self._pseudo = self._square = None
        moves, pseudo = self._hold("moves", w.new_zeros(())), self._hold("pseudo", torch.zeros_like(u))
        square = self._hold("square", torch.zeros_like(u))
        sound = w.isfinite().all() & (w != 0).any()  # a skipped step changes no state
        moved = moves + sound
        t = moved.clamp(min=1)
        f = (1 - self.beta1**t) * u
        g = (f - self.beta1 * pseudo) / (1 - self.beta1)
        moves.copy_(moved)
        pseudo.copy_(torch.where(sound, f, pseudo))
        # An infinite average would make all further updates of its element 0.
        mixed = (self.beta2 * square + (1 - self.beta2) * g * g).clamp(max=torch.finfo(u.dtype).max)
        square.copy_(torch.where(sound, mixed, square))
        update = u / (square.sqrt() / (1 - self.beta2**t).sqrt() + self.eps)
        return update if scale is None else update * scale, w
