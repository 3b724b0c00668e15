"""The base of gradient methods: a method is a subclass that defines `weights(G, losses) -> w`.

Gradient methods project or reweight the K gradients of the shared parameters (K backwards into the gradient arena, one
Gram matrix, one combination). Each head gets its own plain gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from fastmtl import ops
from fastmtl.ops.gradients.gram import MAX_TASKS

from .arena import GradientArena, as_list
from .base import WeightedBalancer, check_scale
from .gradient_strategies import Sequential, StepContext, Strategy, create_strategy
from .gramian import norms_and_cosines
from .replay import still_buffers


@dataclass
class Written:
    """What `gradients` returns if nothing is left to combine: after a micro-batch, or a step that reused weights."""

    log: dict[str, Tensor]

    def write(self) -> dict[str, Tensor]:
        return self.log


@dataclass
class Rows:
    """The K gradients of a step and their weights, not yet combined.

    Attributes:
        J: [K, P] float32 or float64, multiplied by the loss scale.
        G: [K, K] float64 inner products of J's rows, including those of inactive tasks.
        w: [K] float64; after `write` or `combined` the weights for the log.
        losses: task -> loss of the whole step.
        norms, cosines: [K] and [K, K] float64 of the unscaled gradients, for the log.
        step: the context of the call of `gradients`.
        reached: for each shared parameter, whether some task reached it.
    """

    balancer: GradientBalancer
    J: Tensor
    G: Tensor
    w: Tensor
    losses: Mapping[str, Tensor]
    norms: Tensor
    cosines: Tensor
    step: StepContext
    reached: list[bool]

    @property
    def log(self) -> dict[str, Tensor]:
        return {"weights": self.w, "norms": self.norms, "cosines": self.cosines}

    @property
    def are_whole(self) -> bool:
        """Whether the rows are the full gradients of the shared parameters and there is only one rank."""
        return self.balancer._strategy.fills_arena and self.step.ranks.size == 1

    def places(self) -> Iterator[tuple[Tensor, int | None]]:
        """As `GradientArena.places`."""
        return self.step.arena.places(self.reached)

    @torch.no_grad()
    def write(self) -> dict[str, Tensor]:
        """Combine the rows, add the result to `.grad`, and return the log."""
        balancer = self.balancer
        try:
            flat, self.w = balancer._update(self.J, self.w, self.losses)
            balancer._strategy.leave(self.step, flat, self.w, self.reached)
            balancer._strategy.keep(self.log)
            self.step.ranks.reduce_others()
        except BaseException:
            balancer._abort()
            raise
        return self.log

    @torch.no_grad()
    def combined(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Call instead of `write`. Returns rows and weights whose weighted sum is the combined gradient, its squared
        norm, and an upper bound on the elements of its partial sums."""
        balancer = self.balancer
        if balancer.sums_rows:
            J, G, w = self.J, self.G, self.w.to(self.J.dtype)
        else:
            flat, self.w = balancer._update(self.J, self.w, self.losses)
            J, w = flat[None], torch.ones_like(flat[:1])
            G = ops.gram(J)
        balancer._strategy.keep(self.log)
        exact = w.double()
        return J, w, (exact @ G @ exact).clamp(min=0), (exact.abs() * G.diagonal().sqrt()).sum()


class GradientBalancer(WeightedBalancer):
    """Base of the methods that need the K gradients of the shared parameters, through their Gram matrix alone."""

    strategies: tuple[str, ...] = ("sequential", "batched", "features", "last_layer")  # that are valid for the method
    reusable = True  # whether the update is w^T J, so that w can be used for several steps
    sees_gradients = True  # whether `backward` returns the gradients' norms and cosines
    sums_rows = True  # whether `_update` is the weighted sum of the rows, and `_gram` their inner products

    def __init__(self) -> None:
        super().__init__()
        self._arena = GradientArena()
        self._strategy: Strategy = Sequential()
        self._split = False  # whether the rows J hold only this rank's columns

    def use(self, strategy: str = "sequential", *, reuse: int = 1, layer: Tensor | None = None) -> Self:
        """Choose how the K gradients are computed; returns the balancer. docs/balancing.md lists the costs.

        Args:
            strategy: "sequential": K backwards; exact. "batched": one vectorised backward, the same work with K times
                the memory for gradients; exact. "features": gradients of the features passed to `backward`, then one
                backward of the shared part; APPROXIMATE: their Gram matrix is not that of the parameters' gradients.
                "last_layer": weights from the gradients of one layer, then one weighted backward; APPROXIMATE.
            reuse: compute the weights every `reuse` steps; the steps between use one weighted backward.
            layer: only for "last_layer": the parameter; None uses the last one in `shared` with two or more dimensions.

        Raises:
            ValueError: the strategy does not exist, or the method does not support it or `reuse`.
        """
        chosen, method = create_strategy(strategy, reuse, layer), type(self).__name__
        if strategy not in self.strategies:
            raise ValueError(
                f"`strategy` of {method} must be one of {', '.join(self.strategies)}; got {strategy!r}: the method "
                "needs the gradients of the shared parameters, and this strategy does not compute them."
            )
        if reuse > 1 and not self.reusable:
            raise ValueError(f"`reuse` must be 1 for {method}: its update is not a weighted sum of the gradients.")
        if self._ranks.shards_parameters and (why_not := _why_not_sharded(chosen)):
            raise ValueError(why_not)
        self._strategy = chosen
        self.needs_all_losses = type(self).needs_all_losses or chosen.needs_all_losses
        return self

    @property
    def arena(self) -> GradientArena:
        """The rows of the task gradients."""
        return self._arena

    def use_arena(self, arena: GradientArena) -> Self:
        """Write the gradients to the rows of `arena`, which balancers of other steps use too; returns the balancer.
        Call it before `distribute`."""
        self._arena = arena
        return self

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
        """Backpropagate each loss separately, combine the shared gradients, and set `.grad` of every parameter.

        sum_k w_k g_k is added to the `.grad` of the shared parameters. If `.grad` was None, it becomes a view of one
        buffer, which a later step reuses once no tensor refers to it. A parameter that no task reaches keeps its
        `.grad`. All other parameters (heads) accumulate their own gradients as usual.

        Args:
            losses: task -> scalar with a graph; the same tasks in the same order at every step.
            shared: the parameters to balance, for example `model.encoder.parameters()`. Frozen parameters are ignored;
                duplicates count once.
            scale: the GradScaler's scale. Every `.grad` is scaled, as `unscale_` and `step` expect; weights and
                returned values are those of the unscaled gradients.
            last: False adds this micro-batch to the rows and does not change the shared `.grad`; the next call with
                True combines the sum.
            active: bool [K] on the losses' device, which tasks have labels in this micro-batch; None selects tasks with
                a nonzero gradient. The other tasks have weight 0 and are ignored by the method.
            features: only for the strategy "features": the leaves that `cut` made from the shared part's outputs.

        Returns:
            Detached tensors on the gradients' device, for the log: "weights" [K], "norms" [K], "cosines" [K, K], all
            float64; the cosine with a zero gradient is 0. Empty if `last` is False.

        Raises:
            TypeError, ValueError: a loss is not a scalar, has no graph or reaches no shared parameter; the tasks
                changed; `shared` has no trainable leaf. The shared `.grad`s are then unchanged, and micro-batches are
                dropped.
        """
        return self.gradients(losses, shared, scale=scale, last=last, active=active, features=features).write()

    @still_buffers()
    def gradients(
        self,
        losses: Mapping[str, Tensor],
        shared: Iterable[Tensor],
        *,
        scale: Tensor | float | None = None,
        last: bool = True,
        active: Tensor | None = None,
        features: Tensor | Iterable[Tensor] | None = None,
    ) -> Rows | Written:
        """`backward` up to the weights: the shared `.grad`s do not change until `write` of the result is called, which
        must happen before the next call."""
        try:
            shared = as_list(shared)  # it is read more than once
            step = StepContext(self._arena, self._ranks, shared, scale, last, features)
            self._check_losses(losses)
            check_scale(scale)
            if len(losses) > MAX_TASKS:
                raise ValueError(f"`losses` must have at most {MAX_TASKS} tasks; got {len(losses)}.")
            total, active = self._step_losses(losses, active, last)
            self._ranks.begin(self._strategy.writes(shared), self.parameters())
            if last:
                total, active = self._ranks.losses(total, active)
            if last or not self.needs_all_losses:
                self._strategy.fill(step, self._objectives(total if self.needs_all_losses else losses))
            self._tasks = list(losses)
            if not last:
                self._between()
                return Written({})
            if self._strategy.stale:
                self._ranks.reduce_others()
                return Written(self._strategy.reused())
            return self._weighed(step, total, active)
        except BaseException:
            self._abort()
            raise
        finally:
            if last:
                self._arena.clear()

    def state_dict(self) -> dict[str, Any]:
        """The state; with `use(reuse=n)` it includes the current weights and how often they were used."""
        return super().state_dict() | self._strategy.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._strategy.load_state_dict(state)

    def _objectives(self, losses: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The scalar to backpropagate for each task: by default its loss."""
        return losses

    def _between(self) -> None:
        """Called after each micro-batch except the last; most methods do nothing."""
        return

    def _forget(self) -> None:
        super()._forget()
        self._arena.clear()
        self._strategy.forget()

    def _rows_arena(self) -> GradientArena | None:
        return self._arena

    def why_not_sharded(self) -> str:
        return _why_not_sharded(self._strategy)

    @torch.no_grad()
    def _weighed(self, step: StepContext, losses: Mapping[str, Tensor], active: Tensor | None) -> Rows:
        self._split = self._strategy.splits(self._ranks)
        J = self._rows(self._strategy.rows(step), losses, step.scale, active)  # [K, P], or this rank's columns of it
        found = G = self._gram(J)
        if step.scale is not None:
            G = G / (step.scale.double() if isinstance(step.scale, Tensor) else float(step.scale)) ** 2
        if active is not None:
            G = torch.where(active[:, None] & active, G, 0.0)  # a zero row is an inactive task, for every method
        w = self.weights(G, losses)
        return Rows(self, J, found, w, losses, *norms_and_cosines(G), step, self._arena.reached())

    def _rows(
        self, J: Tensor, losses: Mapping[str, Tensor], scale: Tensor | float | None, active: Tensor | None
    ) -> Tensor:
        """The rows to combine [K, P], multiplied by the scale: by default the gradients."""
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


def _why_not_sharded(strategy: Strategy) -> str:
    if strategy.name == "sequential" and strategy.reuse == 1:
        return ""
    return f"`strategy` must be 'sequential' and `reuse` 1 under FSDP2; got {strategy.name!r} and {strategy.reuse}."
