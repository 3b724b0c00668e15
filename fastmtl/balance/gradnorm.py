"""GradNorm: weights that equalise the tasks' gradient norms, corrected for how fast each task trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fastmtl import ops

from .autograd import last_layer, layer_row
from .base import values
from .gramian import gramian
from .loss_base import LossBalancer

_SMALLEST = 1e-3  # times the mean weight: the closed form changes its sign for w < 0


class GradNorm(LossBalancer):
    """Gradient normalisation of Chen et al., ICML 2018, equations 1 and 2.

    W is the last shared layer, N_i = |grad_W L_i|, G_i = w_i N_i, and r_i = (L_i / L_i(0)) / mean. The weights take a
    gradient step on sum_i |G_i - mean(G) r_i^alpha| with the target held fixed. Its derivative is sign(.) N_i, so no
    second backward is needed and the model's gradients do not change. The weights are then clamped to a small positive
    value and scaled to keep their sum, K. Means are over active tasks; L(0) is each task's first loss.

    The weights apply to the losses, so heads are weighted too. A step uses the weights from before its update.
    Computing N takes K short backwards from the losses to W.

    Args:
        alpha: how strongly tasks are pulled to a common training rate; the paper uses 1.5 and 0.12.
        lr: learning rate of the weights.
        layer: W. None uses the last parameter in `shared` with two or more dimensions.
        exponent: 1 (the paper), or -1 as in gradnorm-pytorch.

    Raises:
        ValueError: an option is out of range; at `backward`, there is no such parameter or a task does not reach it.

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
        self._first: Tensor | None = None  # [K] float64: each task's first loss; 0 until then
        self._gradients: Tensor | None = None  # [K, P] of W, summed over the micro-batches so far

    def __repr__(self) -> str:
        return f"GradNorm(alpha={self.alpha}, lr={self.lr}, exponent={self.exponent})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """w [K] float64: the current weights if G is None, else the weights after a step on G.

        G [K, K] float64 is the Gram matrix of W's gradients; only its diagonal is used.
        """
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
        # A skipped step or a NaN rate does not change the weights.
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
