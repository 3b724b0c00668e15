"""FAMO: decrease all losses at the same rate, using only the losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import values
from .gramian import given_weights
from .loss_base import LossBalancer
from .shards import scale_to_norm, total_norm

_BETAS, _ADAM_EPS = (0.9, 0.999), 1e-8


class FAMO(LossBalancer):
    """Fast adaptive multitask optimization of Liu et al., NeurIPS 2023, algorithm 1.

    With z = softmax(xi) the weights are w_k = c z_k / (L_k - b_k + eps), where c = 1 / sum_k z_k / (L_k - b_k + eps).
    After the optimizer step, `after_step` evaluates the losses on the same batch again: delta = log(before) -
    log(after), and xi takes an Adam step with the gradient (diag z - z z^T) delta.

    Call `after_step(reevaluate)` with the random state and the BatchNorm statistics of the first evaluation:
    `balance.replay.Replay` restores both, and fastmtl's trainer uses it. The logarithms need the losses of the whole
    step, so the graphs of all micro-batches are kept until the last one, and micro-batches save no memory.

    Args:
        lr: learning rate of xi.
        decay: Adam's weight decay on xi: 1e-3 in the paper's algorithm, TorchJD and LibMTL, 0.01 in the authors' code.
        min_losses: b, lower bounds of the losses, by name or in order; 0 if None.
        max_norm: largest norm of the shared gradient, 1 in the authors' code; None does not clip.
        eps: added to each loss.

    Raises:
        ValueError: an option is out of range.

    >>> parameter = torch.nn.Parameter(torch.tensor([1.0, 4.0]))
    >>> FAMO().backward({"a": parameter[0], "b": parameter[1]})["weights"].round(decimals=4)
    tensor([0.8000, 0.2000], dtype=torch.float64)
    """

    state_names = ("adam",)
    needs_reevaluation = True
    needs_all_losses = True

    def __init__(
        self,
        *,
        lr: float = 0.025,
        decay: float = 1e-3,
        min_losses: Mapping[str, float] | Sequence[float] | None = None,
        max_norm: float | None = None,
        eps: float = 1e-8,
    ) -> None:
        if not (lr >= 0 and decay >= 0 and eps >= 0) or (max_norm is not None and not max_norm > 0):
            raise ValueError(
                "`lr`, `decay` and `eps` must not be negative, `max_norm` must be positive or None; "
                f"got {lr}, {decay}, {eps}, {max_norm}."
            )
        super().__init__()
        self.lr, self.decay, self.max_norm, self.eps, self._bounds = lr, decay, max_norm, eps, min_losses
        self._adam: Tensor | None = None  # [4, K] float64: xi, its two moments, its number of updates
        self._before: Tensor | None = None  # [K], losses of the step until they are evaluated again; then NaN
        self._active: Tensor | None = None

    def __repr__(self) -> str:
        rest = f"max_norm={self.max_norm}, eps={self.eps}"
        return f"FAMO(lr={self.lr}, decay={self.decay}, min_losses={self._bounds!r}, {rest})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """[K] float64 with sum 1, 0 for tasks whose loss is 0; G is not used."""
        found = values(losses)
        active = found != 0
        share = self._share(active) / self._above(found, losses)
        total = share.sum()
        return share / torch.where(total == 0, 1.0, total)  # no task has a loss

    def _share(self, active: Tensor) -> Tensor:
        """z [K]."""
        xi = torch.zeros(len(active), dtype=torch.float64, device=active.device)
        if self._adam is not None:
            xi = self._adam[0].to(active.device)
        return torch.where(active, xi, -torch.inf).softmax(0).nan_to_num(0.0)

    def _above(self, found: Tensor, losses: Mapping[str, Tensor]) -> Tensor:
        bounds = 0.0 if self._bounds is None else given_weights(self._bounds, losses, found)
        return found - bounds + self.eps

    def _ended(
        self, total: Mapping[str, Tensor], active: Tensor | None, shared: Iterable[Tensor], scale: Tensor | float | None
    ) -> None:
        found = values(total)
        flags = found != 0 if active is None else active
        self._hold("before", found).copy_(found)
        self._hold("active", flags).copy_(flags)
        if self.max_norm is not None:
            _clip(shared, self.max_norm, 1.0 if scale is None else scale)

    @torch.no_grad()
    def after_step(self, reevaluate: Callable[[], Mapping[str, Tensor]]) -> None:
        """Update xi from the change of the losses; `reevaluate` returns the losses on the same batch, computed again.

        Raises:
            ValueError: `reevaluate` returns other tasks.
        """
        if self._before is None or self._active is None:
            return
        again = reevaluate()
        if list(again) != self._tasks:
            raise ValueError(f"`reevaluate` must return the losses of {self._tasks}; got {list(again)}.")
        again, _ = self._ranks.losses(dict(again), None)
        before, active = self._before.clone(), self._active
        self._before.fill_(torch.nan)  # a second call must not update xi
        delta = self._above(before, again).log() - self._above(values(again), again).log()
        delta = torch.where(active, delta, 0.0)
        sound = delta.isfinite().all()
        z = self._share(active)
        gradient = z * delta - z * (z * delta).sum()
        adam = self._hold("adam", torch.zeros(4, len(z), dtype=torch.float64, device=z.device))
        xi, first, second, count = adam
        gradient = gradient + self.decay * xi
        count = count + 1
        first = first + (1 - _BETAS[0]) * (gradient - first)
        second = _BETAS[1] * second + (1 - _BETAS[1]) * gradient * gradient
        root = (second / (1 - _BETAS[1] ** count)).sqrt()
        xi = xi - self.lr * first / (1 - _BETAS[0] ** count) / (root + _ADAM_EPS)
        moved = torch.stack([xi, first, second, count])
        # A step that was skipped, or made a loss infinite, does not update xi.
        adam.copy_(torch.where(active & sound, moved, adam))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._before = None


@torch.no_grad()
def _clip(parameters: Iterable[Tensor], max_norm: float, scale: Tensor | float) -> None:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        scale_to_norm(gradients, total_norm(gradients), max_norm * scale, 1e-6 * scale)
