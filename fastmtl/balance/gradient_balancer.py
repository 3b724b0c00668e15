"""The base of gradient methods: a method is a subclass with `weights(G, losses) -> w`; the rest is here.

They project or reweight the K gradients of the shared parameters (K backwards into the gradient arena, one Gram matrix,
one combination) and leave each head its own plain gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from fastmtl import ops
from fastmtl.balance.replay import still_buffers
from fastmtl.ops.gradients.gram import MAX_TASKS

from .arena import GradientArena, as_list
from .base import WeightedBalancer, check_scale
from .exact_strategies import Sequential, Strategy
from .strategies import create_strategy


@dataclass
class Rows:
    """What a gradient method has when its weights are known: the gradients, not yet combined.

    Attributes:
        J: [K, P] float32 or float64, times the loss scale.
        G: [K, K] float64 inner products of J's rows, those of inactive tasks too.
        w: [K] float64; after `write` or `update` as it is for the log.
        losses: of the whole step.
    """

    balancer: GradientBalancer
    J: Tensor
    G: Tensor
    w: Tensor
    losses: Mapping[str, Tensor]

    def places(self) -> Iterator[tuple[Tensor, int | None]]:
        """As `GradientArena.places`."""
        return self.balancer._arena.places()

    def write(self) -> None:
        """Combine, and add the result to `.grad`."""
        flat, self.w = self.balancer._update(self.J, self.w, self.losses)
        self.balancer._strategy.leave(self.balancer, flat, self.w)

    def update(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows and weights whose weighted sum is the combined gradient, its squared norm, and what no element of a
        partial sum exceeds."""
        method = type(self.balancer)
        if method._update is GradientBalancer._update and method._gram is GradientBalancer._gram:
            J, G, w = self.J, self.G, self.w.to(self.J.dtype)
        else:  # no weighted sum, or another G
            flat, self.w = self.balancer._update(self.J, self.w, self.losses)
            J, w = flat[None], torch.ones_like(flat[:1])
            G = ops.gram(J)
        exact = w.double()
        return J, w, (exact @ G @ exact).clamp(min=0), (exact.abs() * G.diagonal().sqrt()).sum()


class GradientBalancer(WeightedBalancer):
    """Base of the methods that need the K gradients of the shared parameters, through their Gram matrix alone."""

    strategies: tuple[str, ...] = ("sequential", "batched", "features", "last_layer")  # that keep the method's meaning
    reusable = True  # whether the update is w^T J, so that w may serve several steps
    sees_gradients = True  # and returns their norms and cosines
    split_state: tuple[str, ...] = ()  # of `state_dict`: what differs between ranks that share the columns

    def __init__(self) -> None:
        super().__init__()
        self._arena = GradientArena()
        self._strategy: Strategy = Sequential()
        self._split = False  # whether the rows J are a part of the columns, the others being on other ranks
        self._take_rows: Callable[[Rows], None] | None = None

    def use(self, strategy: str = "sequential", *, reuse: int = 1, layer: Tensor | None = None) -> Self:
        """Choose how the K gradients are come by; returns the balancer. docs/balancing.md has the costs.

        Args:
            strategy: "sequential": K backwards; exact. "batched": one vectorised backward, the same work, K times the
                memory for gradients; exact. "features": gradients of the features given to `backward`, one backward of
                the shared part; APPROXIMATE, their Gram matrix is not the parameters'. "last_layer": weights from the
                gradients of one layer, then one weighted backward; APPROXIMATE.
            reuse: n: the weights of one step serve the next n - 1 too, each with one weighted backward.
            layer: of "last_layer": the parameter; None takes the last one in `shared` of two or more dimensions.

        Raises:
            ValueError: no such strategy, or the method loses its meaning under it.
        """
        self._strategy = create_strategy(self, strategy, reuse, layer)
        self.needs_all_losses = type(self).needs_all_losses or self._strategy.needs_all_losses
        return self

    @contextmanager
    def giving_rows(self, take: Callable[[Rows], None]) -> Iterator[None]:
        """Inside, `backward` ends with `take(rows)` instead of writing the shared `.grad`s, where they are the whole
        gradients of this process and their combination is all that is missing."""
        self._take_rows = take
        try:
            yield
        finally:
            self._take_rows = None

    @still_buffers()
    def backward(
        self,
        losses: Mapping[str, Tensor],
        shared: Iterable[Tensor],
        *,
        scale: Tensor | float | None = None,
        last: bool = True,
        active: Tensor | None = None,
        features: Tensor | Iterable[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Backpropagate each loss by itself, combine the shared gradients, and leave `.grad` on every parameter.

        Shared parameters get sum_k w_k g_k added to their `.grad`; where it was None, `.grad` becomes a view of one
        buffer, which a later step uses again once no tensor looks into it. What no task reaches keeps `.grad` as it
        was. All other parameters (heads) accumulate their own gradients as in any loop.

        Args:
            losses: task -> scalar with a graph; the same tasks in the same order at every step.
            shared: the parameters to balance, for example `model.encoder.parameters()`. Frozen ones take no part,
                one given twice counts once.
            scale: the GradScaler's scale. Every `.grad` is scaled, as its `unscale_` and `step` expect; weights and
                what is returned are those of the true gradients.
            last: False adds this micro-batch to the rows and leaves the shared `.grad` alone; the next call with True
                combines the sum.
            active: bool [K] on the losses' device, which tasks have labels in this micro-batch; None takes those
                whose gradient is not zero. The others have weight 0, and the method works on the rest.
            features: of the strategy "features": what `cut` made of the shared part's outputs.

        Returns:
            Detached tensors on the gradients' device, for the log: "weights" [K], "norms" [K], "cosines" [K, K], all
            float64; the cosine with a zero gradient is 0. Empty when `last` is False.

        Raises:
            TypeError, ValueError: a loss is no scalar, has no graph or reaches no shared parameter; the tasks changed;
                `shared` holds no trainable leaf. Shared `.grad`s are then as before; micro-batches are dropped.
        """
        shared = as_list(shared)  # it is read more than once
        try:
            self._check_losses(losses)
            check_scale(scale)
            if len(losses) > MAX_TASKS:
                raise ValueError(f"`losses` must have at most {MAX_TASKS} tasks; got {len(losses)}.")
            total, active = self._step_losses(losses, active, last)
            self._ranks.begin(self._strategy.writes(shared), self.parameters())
            if last:
                total, active = self._ranks.losses(total, active)
            if last or not self.needs_all_losses:
                objectives = self._objectives(total if self.needs_all_losses else losses)
                self._strategy.fill(self, objectives, shared, scale, last, features)
            self._tasks = list(losses)
            if not last:
                self._between()
                return {}
            done = self._strategy.finish(self, total, scale, active)
            self._ranks.finish()
            return done
        except BaseException:
            self._forget()  # half a step is worth nothing, and must not leak into the next one
            self._ranks.abort()
            raise
        finally:
            if last:
                self._arena.clear()

    def state_dict(self) -> dict[str, Any]:
        """The tasks' names in order, and under `use(reuse=n)` the weights and how often they served."""
        return super().state_dict() | self._strategy.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._strategy.load_state_dict(state)

    def _objectives(self, losses: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What is backpropagated for each task: its loss, but for methods that say otherwise."""
        return losses

    def _between(self) -> None:
        """After each micro-batch but the last; for most methods nothing happens."""
        return

    def _forget(self) -> None:
        super()._forget()
        self._arena.clear()
        self._strategy.forget()

    @torch.no_grad()
    def _combine(
        self, losses: Mapping[str, Tensor], scale: Tensor | float | None, active: Tensor | None
    ) -> dict[str, Tensor]:
        J = self._rows(self._strategy.rows(self), scale, active)  # [K, P], or this rank's columns of it
        G = found = self._gram(J)
        if scale is not None:
            G = G / (scale.double() if isinstance(scale, Tensor) else float(scale)) ** 2
        if active is not None:
            G = torch.where(active[:, None] & active, G, 0.0)  # a zero row is an inactive task, for every method
        rows = Rows(self, J, found, self.weights(G, losses), losses)
        if self._take_rows is None or not self._strategy.fills_arena or self._ranks.size > 1:
            rows.write()
        else:
            self._take_rows(rows)
        norms = G.diagonal().clamp(min=0).sqrt()
        lengths = torch.outer(norms, norms)
        return {"weights": rows.w, "norms": norms, "cosines": torch.where(lengths == 0, 0.0, G / lengths)}

    def _rows(self, J: Tensor, scale: Tensor | float | None, active: Tensor | None) -> Tensor:
        """What is combined: the gradients [K, P] (times the scale), but for methods that keep averages of them."""
        return J

    def _gram(self, J: Tensor) -> Tensor:
        """[K, K] float64 inner products of the rows."""
        return self._over_columns(ops.gram(J))

    def _norms(self, J: Tensor) -> Tensor:
        """[K] float64 norms of the rows."""
        return self._over_columns(ops.grad_norms(J).square()).sqrt() if self._split else ops.grad_norms(J)

    def _over_columns(self, sums: Tensor) -> Tensor:
        """Sums over this rank's columns -> sums over all."""
        return self._ranks.sum(sums) if self._split else sums

    def _update(self, J: Tensor, w: Tensor, losses: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The combined gradient [P], and the weights [K] for the log."""
        return ops.combine(J, w), w
