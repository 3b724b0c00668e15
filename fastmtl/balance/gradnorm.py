"""GradNorm: weights that equalise the tasks' gradient norms, corrected for how fast each task trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fastmtl import ops

from .autograd import last_layer, layer_row
from .base import values
from .gramian import gramian
from .uncertainty import Learned

_SMALLEST = 1e-3  # times the mean weight


class GradNorm(Learned):
    """Gradient normalisation of Chen et al., ICML 2018, equations 1 and 2.

    W is a shared layer, N_i = |grad_W L_i|, G_i = |w_i| N_i, and r_i = (L_i / L_i(0)) / mean. The weights take a
    gradient step on sum_i |G_i - mean(G) r_i^alpha| with the target held fixed. Its derivative is
    sign(G_i - target) sign(w_i) N_i, so no second backward is needed and the model's gradients do not change. The
    weights are then clamped to a small positive value and scaled to keep their sum, K. Means are over active tasks.

    The weights apply to the losses, so heads are weighted too. A step uses the weights from before its update.
    Computing N takes K short backwards from the losses to W.

    The paper's algorithm 1 has no clamp: without it a weight can become negative, and the task's loss then grows
    without bound. It leaves open which optimizer moves the weights.

    Args:
        alpha: how strongly tasks are pulled to a common training rate; the paper uses 1.5 and 0.12.
        lr: learning rate of the weights, for `optimizer` "sgd".
        layer: W, or its name in the model, which recipes are given. None uses the last parameter in `shared` with two
            or more dimensions.
        exponent: 1 (the paper), or -1 as in gradnorm-pytorch.
        optimizer: what moves the weights: "sgd", plain steps at `lr`, or "model", the model's optimizer at its rate
            and with its moments: pass `parameters()` to it. The weights are scaled at the next step.
        clamp: whether the weights stay positive.
        initial: L(0): "step", each task's first loss, or "epoch", its last loss of the first epoch, until whose end
            r is 1. Call `on_epoch()` at the end of every epoch then; fastmtl's trainer does.

    Raises:
        ValueError: an option is out of range; at `backward`, there is no such parameter or a task does not reach it.

    >>> encoder = torch.nn.Linear(2, 2)
    >>> z = encoder(torch.ones(1, 2))
    >>> GradNorm().backward({"a": z.sum(), "b": 3 * z.sum()}, encoder.parameters())["weights"]
    tensor([1., 1.], dtype=torch.float64)
    """

    def __init__(
        self,
        alpha: float = 1.5,
        *,
        lr: float = 0.025,
        layer: Tensor | str | None = None,
        exponent: int = 1,
        optimizer: str = "sgd",
        clamp: bool = True,
        initial: str = "step",
    ) -> None:
        if not 0 <= alpha < float("inf") or not 0 <= lr < float("inf"):
            raise ValueError(f"`alpha` and `lr` must be finite and not negative; got {alpha} and {lr}.")
        if exponent not in (1, -1):
            raise ValueError(f"`exponent` must be 1 or -1; got {exponent}.")
        if optimizer not in ("sgd", "model"):
            raise ValueError(f"`optimizer` must be 'sgd' or 'model'; got {optimizer!r}.")
        if initial not in ("step", "epoch"):
            raise ValueError(f"`initial` must be 'step' or 'epoch'; got {initial!r}.")
        super().__init__(1.0)
        self.alpha, self.lr, self.exponent, self._layer = alpha, lr, exponent, layer
        self.optimizer, self.clamp, self.initial = optimizer, clamp, initial
        self._by_model = optimizer == "model"
        own = () if self._by_model else ("w",)
        self.state_names = (*own, "first", *(("epochs",) if initial == "epoch" else ()))
        self._w: Tensor | None = None  # [K] float64, for "sgd"
        self._first: Tensor | None = None  # [K] float64: L(0); 0 until then
        self._epochs = torch.zeros((), dtype=torch.float64)  # so far
        self._gradients: Tensor | None = None  # [K, P] of W, summed over the micro-batches so far

    def __repr__(self) -> str:
        options = {"alpha": self.alpha, "lr": self.lr, "exponent": self.exponent, "optimizer": self.optimizer}
        options |= {"clamp": self.clamp, "initial": self.initial}
        return f"GradNorm({', '.join(f'{name}={value!r}' for name, value in options.items())})"

    def parameters(self) -> Iterable[Parameter]:
        """The weights [K] float32 for `optimizer` "model": pass them to the optimizer, without weight decay."""
        return super().parameters() if self._by_model else ()

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """w [K] float64: the current weights if G is None, else the weights after a step on G.

        G [K, K] float64 is the Gram matrix of W's gradients; only its diagonal is used. For `optimizer` "model" the
        step is the optimizer's, and the weights before it are returned.
        """
        found = values(losses)
        w = self._current(losses)
        if G is not None:
            self._learn(gramian(G).diagonal().sqrt(), found)
        return w if self._by_model else self._current(losses)

    def _current(self, losses: Mapping[str, Tensor]) -> Tensor:
        if not self._by_model:
            return self._hold("w", torch.ones_like(values(losses))).clone()
        return self._scaled(self._learned(losses).detach())

    def _scaled(self, w: Tensor) -> Tensor:
        """The weights with the sum K, positive if `clamp`."""
        if self.clamp:
            w = torch.maximum(w, torch.full_like(w, _SMALLEST))
        return w * (len(w) / w.sum())

    def _learn(self, norms: Tensor, found: Tensor, scale: Tensor | float | None = None) -> None:
        w = self._scaled(self._s.detach().double()) if self._by_model else self._hold("w", torch.ones_like(found))
        kept = self._hold("first", torch.zeros_like(found))
        active = (norms != 0) & (found != 0)
        fresh = kept == 0
        if self.initial == "epoch":
            fresh = fresh | (self._hold("epochs", found.new_zeros(())) == 0)
        first = torch.where(active & fresh, found, kept)
        count = active.sum().clamp(min=1)
        lengths = torch.where(active, w.abs() * norms, 0.0)
        rates = torch.where(active, found / first, 0.0)
        rates = torch.where(active, rates / (rates.sum() / count), 1.0)
        target = lengths.sum() / count * rates ** (self.exponent * self.alpha)
        gradient = torch.where(active, torch.sign(lengths - target) * torch.sign(w) * norms, 0.0)
        if self._by_model:
            sound = gradient.isfinite().all()  # otherwise the optimizer skips the step
            self._give(w, gradient, scale)
        else:
            moved = w - self.lr * gradient
            before = torch.where(active, w, 0.0).sum()
            if self.clamp:
                moved = torch.maximum(moved, _SMALLEST * before / count)
            moved = moved * (before / torch.where(active, moved, 0.0).sum())
            # A skipped step or a NaN rate does not change the weights.
            sound = norms.isfinite().all() & torch.where(active, moved, 1.0).isfinite().all()
            w.copy_(torch.where(active & sound, moved, w))
        kept.copy_(torch.where(sound, first, kept))

    def _give(self, w: Tensor, gradient: Tensor, scale: Tensor | float | None) -> None:
        """Put the scaled weights and their gradient into the parameter that the optimizer moves."""
        with torch.no_grad():
            self._s.copy_(w)
            gradient = (gradient if scale is None else gradient * scale).to(self._s.dtype)
            self._s.grad = gradient if self._s.grad is None else self._s.grad + gradient

    def on_epoch(self) -> None:
        """End an epoch; after the first one L(0) no longer changes."""
        self._epochs.add_(1)

    def state_dict(self) -> dict[str, Any]:
        """The tasks' names, L(0) and the weights."""
        state = super().state_dict()
        return state if self._by_model else {name: value for name, value in state.items() if name != "learned"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state if self._by_model else {**state, "learned": self._s})

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
        if isinstance(layer, str):
            raise ValueError(f"`layer` must be the parameter itself outside recipes; got its name, {layer!r}.")
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
            self._learn(norms, found, scale)
        return done

    def why_not_sharded(self) -> str:
        return "GradNorm measures one layer's gradients through autograd, which FSDP2 hides from it."

    def _forget(self) -> None:
        super()._forget()
        self._gradients = None
