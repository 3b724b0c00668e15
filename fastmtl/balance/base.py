"""The two kinds of balancer. A method is a subclass with `weights(G, losses) -> w`; the rest is here.

Gradient methods project or reweight the K gradients of the shared parameters (K backwards into the gradient arena, one
Gram matrix, one combination) and leave each head its own plain gradient. Loss methods weigh the losses themselves, so
one backward does, and the heads' gradients are scaled too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from fastmtl import ops
from fastmtl.ops.gram import MAX_TASKS

from .alone import Alone
from .arena import GradientArena
from .strategies import Sequential, Strategy, backward, create_strategy, weighted_sum


class WeightedBalancer(ABC):
    """What both kinds share: the fixed task order, the step's losses and tasks, and a state that resumes it."""

    looks_twice = False  # whether `after_step` calls `reevaluate`
    # Whether the gradient is not linear in the losses. Then micro-batches are kept, graphs and all, until the last one:
    # exact, and no memory is saved.
    needs_all_losses = False

    def __init__(self) -> None:
        self._tasks: list[str] | None = None
        self._kept: dict[str, Tensor] = {}  # sums of the losses of earlier micro-batches; detached but for the above
        self._kept_active: Tensor | None = None
        self._ranks = Alone()

    @abstractmethod
    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """The method itself: the tasks' weights w [K] from G [K, K] float64 (gradient methods) and the K losses."""

    def after_step(self, reevaluate: Callable[[], Mapping[str, Tensor]]) -> None:
        """Nothing to do after the optimizer's step, for most methods."""
        return

    def on_epoch(self) -> None:
        """Call at the end of every epoch; for most methods nothing happens."""
        return

    def parameters(self) -> Iterable[Parameter]:
        """Nothing is learned."""
        return ()

    def distribute(
        self,
        model: Module,
        *,
        group: Any = None,
        method: str = "reduce_scatter",
        scope: str = "global",
        overlap: bool = True,
    ) -> Self:
        """Work on the gradients of all ranks. Call it on every rank, after `load_state_dict`; returns the balancer.

        The balancer then averages the gradients of all of `model`'s parameters itself, heads included, as
        DistributedDataParallel would, and every rank gets the same ones. Losses count with their mean over the ranks:
        `global_losses` turns means over a rank's labelled samples into such losses. Every rank calls `backward` alike;
        a task without labels on a rank has the loss `0.0 * output.sum()` there.

        Args:
            model: the module whose parameters the optimizer holds, equal on all ranks: a plain one, one wrapped in
                DistributedDataParallel (its own averaging is switched off for good, as by `no_sync`), or one sharded by
                FSDP2's `fully_shard`.
            group: process group; None is the default one.
            method: of gradient methods, both exact: "reduce_scatter" sends (K+1) P numbers, each rank measures and
                combines its share of the columns; "all_reduce" sends 2 K P and leaves J on every rank. FSDP2 sends its
                own.
            scope: "local" projects each rank's gradients by themselves and averages the results: P numbers, APPROXIMATE
                (3 to 11% off in our measurements, and no method's definition).
            overlap: send a task's gradient while the next task's backward runs.

        Raises:
            ValueError: an option is none of these, or parameters, options or state differ between the ranks.
        """
        from .distributed import join  # here, because few need it

        self._ranks = join(self, model, group, method, scope, overlap)
        return self

    def state_dict(self) -> dict[str, Any]:
        """The tasks' names in order, None before the first step. Take it after `last=True`: rows are not in it."""
        return {"tasks": None if self._tasks is None else list(self._tasks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._tasks = None if state["tasks"] is None else list(state["tasks"])

    def _step_losses(
        self, losses: Mapping[str, Tensor], active: Tensor | None, last: bool
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Each task's loss, and whether it has labels, in this step so far; the last micro-batch ends the step."""
        graphs = self.needs_all_losses
        total = {
            name: (loss if graphs else loss.detach()) + self._kept[name] if self._kept else loss
            for name, loss in losses.items()
        }
        if active is not None:
            active = _check_active(active, losses)
            active = active if self._kept_active is None else active | self._kept_active
        if last:
            self._kept, self._kept_active = {}, None
        else:
            self._kept = {name: loss if graphs else loss.detach() for name, loss in total.items()}
            self._kept_active = active
        return total, active

    def _forget(self) -> None:
        """Drop what the micro-batches of a step that failed have left."""
        self._kept, self._kept_active = {}, None

    def _check_losses(self, losses: Mapping[str, Tensor]) -> None:
        """Raise unless `losses` are scalars with a graph, of the same tasks in the same order as ever."""
        if not isinstance(losses, Mapping) or not losses:
            found = type(losses).__name__ if losses else "no loss"
            raise ValueError(f"`losses` must map each task's name to its loss; got {found}.")
        for name, loss in losses.items():
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                found = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
                raise ValueError(f"`losses[{name!r}]` must be a scalar tensor; got {found}. Reduce it first.")
            if not loss.requires_grad:
                raise ValueError(
                    f"`losses[{name!r}]` must carry a graph; got a tensor with requires_grad=False. For a task without "
                    "labels in the batch return `0.0 * output.sum()`, and never a detached loss."
                )
        if self._tasks is not None and list(losses) != self._tasks:
            raise ValueError(
                f"`losses` must have the tasks {self._tasks}, in this order, at every step; got {list(losses)}."
            )


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
        shared = shared if isinstance(shared, Tensor) else list(shared)  # it is read more than once
        try:
            self._check_losses(losses)
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


class LossBalancer(WeightedBalancer):
    """Base of the methods that weigh the losses: one backward of the weighted sum."""

    def backward(
        self,
        losses: Mapping[str, Tensor],
        shared: Iterable[Tensor] = (),
        *,
        scale: Tensor | float | None = None,
        last: bool = True,
        active: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Backpropagate sum_k w_k L_k, adding to `.grad` as `Tensor.backward` does.

        Args:
            losses: task -> scalar with a graph; the same tasks in the same order at every step.
            shared: not needed by most methods; heads are weighted too.
            scale: the GradScaler's scale, which multiplies the sum.
            last: False for all micro-batches of a step but the last; their gradients add up in `.grad`.
            active: bool [K] on the losses' device, which tasks have labels in this micro-batch; None takes those
                whose loss is not 0. The others weigh nothing, and means over tasks leave them out.

        Returns:
            "weights" [K], detached, for the log.

        Raises:
            ValueError: a loss is no scalar or has no graph, or the tasks changed.
        """
        try:
            self._check_losses(losses)
            total, active = self._step_losses(losses, active, last)
            self._tasks = list(losses)
            self._ranks.begin((), self.parameters())
            if self.needs_all_losses and not last:
                return {}
            total, active = self._ranks.losses(total, active)
            return self._weigh(total if self.needs_all_losses else losses, total, active, shared, scale, last)
        except BaseException:
            self._forget()
            self._ranks.abort()
            raise

    def _weigh(
        self,
        losses: Mapping[str, Tensor],
        total: Mapping[str, Tensor],
        active: Tensor | None,
        shared: Iterable[Tensor],
        scale: Tensor | float | None,
        last: bool,
    ) -> dict[str, Tensor]:
        """One backward of `losses` weighed as `total`, the step's losses so far, ask."""
        seen = total
        if active is not None:
            flags = zip(total.items(), active.unbind(), strict=True)
            seen = {name: torch.where(flag, loss, 0.0) for (name, loss), flag in flags}
        w = self.weights(None, seen)
        if active is not None:
            w = torch.where(active, w, 0.0)
        objective = weighted_sum(losses.values(), w)
        if last and (extra := self._regularizer(values(seen) != 0)) is not None:
            objective = objective + extra.to(objective.dtype)
        backward(self._ranks.scaled(objective, scale))
        if last:
            self._ranks.finish()
        return {"weights": w.detach()}

    def _regularizer(self, active: Tensor) -> Tensor | None:
        """What learned weights add to the objective, once a step; `active` bool [K]."""
        return None


def values(losses: Mapping[str, Tensor]) -> Tensor:
    """The losses as one detached vector [K] float64."""
    return torch.stack([loss.detach().reshape(()).double() for loss in losses.values()])


def _check_active(active: Tensor, losses: Mapping[str, Tensor]) -> Tensor:
    if not isinstance(active, Tensor) or active.dtype != torch.bool or active.shape != (len(losses),):
        found = f"{list(active.shape)} {active.dtype}" if isinstance(active, Tensor) else type(active).__name__
        raise ValueError(
            f"`active` must be a bool tensor [{len(losses)}], one flag per task; got {found}. "
            "Take it from batch.present.any(0)."
        )
    return active
