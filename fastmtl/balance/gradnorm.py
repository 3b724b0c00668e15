"""GradNorm: weights that bring the tasks' gradients to one size, corrected for how fast each task trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fastmtl import ops

from .autograd import last_layer, layer_row
from .base import values
from .gramian import gramian
from .loss_base import LossBalancer

_SMALLEST = 1e-3  # of the mean weight: the closed form changes its sign for w < 0


class GradNorm(LossBalancer):
    """Chen et al., ICML 2018, equations 1 and 2.

    N_i is the norm of grad_W L_i, W the last shared layer; G_i = w_i N_i, r_i = (L_i / L_i(0)) / mean, and the weights
    descend on sum_i |G_i - mean(G) r_i^alpha| with the target held fixed, whose derivative is sign(.) N_i: no second
    backward, and the model's gradients are left alone. Then w stays above a small positive value and keeps its sum, K.
    Means are over active tasks; L(0) is each task's first loss.

    It weighs losses, heads included: the step's backward has the weights from before the step. N needs the K gradients
    of W alone, K short backwards from the losses to W, which keep their graphs for the real one.

    Args:
        alpha: the strength of the pull to a common rate; the paper takes 1.5 and 0.12.
        lr: of the weights.
        layer: W. None takes the last parameter of two or more dimensions in `shared`.
        exponent: 1 (the paper), or -1, which gradnorm-pytorch computes.

    Raises:
        ValueError: an option out of range; at `backward`, no such parameter, or a task that does not reach it.

    >>> encoder = torch.nn.Linear(2, 2)
    >>> z = encoder(torch.ones(1, 2))
    >>> GradNorm().backward({"a": z.sum(), "b": 3 * z.sum()}, encoder.parameters())["weights"]
    tensor([1., 1.], dtype=torch.float64)
    """

    state_names = ("w", "first")

    def __init__(
        self, alpha: float = 1.5, *, lr: float = 0.025, layer: Tensor | None = None, exponent: int = 1
    ) -> None:
        if not alpha >= 0 or not lr >= 0:
            raise ValueError(f"`alpha` and `lr` must not be negative; got {alpha} and {lr}.")
        if exponent not in (1, -1):
            raise ValueError(f"`exponent` must be 1 or -1; got {exponent}.")
        super().__init__()
        self.alpha, self.lr, self.exponent, self._layer = alpha, lr, exponent, layer
        self._w: Tensor | None = None  # [K] float64
        self._first: Tensor | None = None  # [K] float64: each task's first loss, 0 before
        self._gradients: Tensor | None = None  # [K, P] of W, over the micro-batches so far

    def __repr__(self) -> str:
        return f"GradNorm(alpha={self.alpha}, lr={self.lr}, exponent={self.exponent})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """w [K] float64: as they are if G is None, else after a step on G [K, K] float64, the Gram matrix of W's
        gradients (its diagonal is read)."""
        found = values(losses)
        w = self._hold("w", torch.ones_like(found))
        if G is not None:
            self._learn(gramian(G).diagonal().sqrt(), found)
        return w.clone()

    def _learn(self, norms: Tensor, found: Tensor) -> None:
        w, kept = self._hold("w", torch.ones_like(found)), self._hold("first", torch.zeros_like(found))
        active = (norms != 0) & (found != 0)
        first = torch.where(active & (kept == 0), found, kept)
        count = active.sum().clamp(min=1)
        lengths = torch.where(active, w * norms, 0.0)
        rates = torch.where(active, found / first, 0.0)
        rates = torch.where(active, rates / (rates.sum() / count), 1.0)
        target = lengths.sum() / count * rates ** (self.exponent * self.alpha)
        moved = w - self.lr * torch.sign(lengths - target) * norms
        before = torch.where(active, w, 0.0).sum()
        moved = torch.maximum(moved, _SMALLEST * before / count)
        moved = moved * (before / torch.where(active, moved, 0.0).sum())
        # A step that is skipped, or a rate that is no number, leaves the weights alone.
        sound = norms.isfinite().all() & torch.where(active, moved, 1.0).isfinite().all()
        w.copy_(torch.where(active & sound, moved, w))
        kept.copy_(torch.where(sound, first, kept))

    def _weigh(
        self,
        losses: Mapping[str, Tensor],
        total: Mapping[str, Tensor],
        active: Tensor | None,
        shared: Iterable[Tensor],
        scale: Tensor | float | None,
        last: bool,
    ) -> dict[str, Tensor]:
        layer = last_layer(shared) if self._layer is None else self._layer
        rows = torch.stack(
            [layer_row(name, loss if scale is None else loss * scale, layer) for name, loss in losses.items()]
        )
        self._gradients = rows if self._gradients is None else self._gradients + rows
        done = super()._weigh(losses, total, active, shared, scale, last)
        if last:
            norms, self._gradients = ops.grad_norms(self._ranks.mean(self._gradients)), None
            if scale is not None:
                norms = norms / scale
            found = values(total)
            if active is not None:
                found = torch.where(active, found, 0.0)
            self._learn(norms, found)
        return done

    def _why_not_sharded(self) -> str:
        return "GradNorm measures one layer's gradients through autograd, which FSDP2 hides from it."

    def _forget(self) -> None:
        super()._forget()
        self._gradients = None
