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
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fastmtl import ops
from fastmtl.ops.gram import MAX_TASKS

from .arena import GradientArena


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
        self.balancer._arena.write(flat)

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

    def __init__(self) -> None:
        super().__init__()
        self._arena = GradientArena()
        self._take_rows: Callable[[Rows], None] | None = None

    @contextmanager
    def giving_rows(self, take: Callable[[Rows], None]) -> Iterator[None]:
        """Inside, `backward` ends with `take(rows)` instead of writing the shared `.grad`s."""
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

        Returns:
            Detached tensors on the gradients' device, for the log: "weights" [K], "norms" [K], "cosines" [K, K], all
            float64; the cosine with a zero gradient is 0. Empty when `last` is False.

        Raises:
            TypeError, ValueError: a loss is no scalar, has no graph or reaches no shared parameter; the tasks changed;
                `shared` holds no trainable leaf. Shared `.grad`s are then as before; micro-batches are dropped.
        """
        try:
            self._check_losses(losses)
            total, active = self._step_losses(losses, active, last)
            if last or not self.needs_all_losses:
                self._fill(self._objectives(total if self.needs_all_losses else losses), shared, scale)
        except BaseException:
            self._arena.clear()  # half a step is worth nothing, and must not leak into the next one
            self._forget()
            raise
        self._tasks = list(losses)
        if not last:
            return {}
        try:
            return self._combine(total, scale, active)
        finally:
            self._arena.clear()

    def _objectives(self, losses: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What is backpropagated for each task: its loss, but for methods that say otherwise."""
        return losses

    def _fill(self, losses: Mapping[str, Tensor], shared: Iterable[Tensor], scale: Tensor | float | None) -> None:
        if len(losses) > MAX_TASKS:
            raise ValueError(f"`losses` must have at most {MAX_TASKS} tasks; got {len(losses)}.")
        with self._arena.open(shared, len(losses)):
            for task, (name, loss) in enumerate(losses.items()):
                with self._arena.record(task) as reached:
                    scaled = loss if scale is None else loss * scale
                    _backward(scaled, retain_graph=task + 1 < len(losses))
                if not reached:
                    raise ValueError(
                        f"`losses[{name!r}]` must reach at least one parameter in `shared`; its graph holds none of "
                        "them. Pass the parameters this task shares, or leave the task out of `losses`."
                    )

    @torch.no_grad()
    def _combine(
        self, losses: Mapping[str, Tensor], scale: Tensor | float | None, active: Tensor | None
    ) -> dict[str, Tensor]:
        J = self._rows(self._arena.finish(), scale, active)  # [K, P]
        G = found = self._gram(J)
        if scale is not None:
            G = G / (scale.double() if isinstance(scale, Tensor) else float(scale)) ** 2
        if active is not None:
            G = torch.where(active[:, None] & active, G, 0.0)  # a zero row is an inactive task, for every method
        rows = Rows(self, J, found, self.weights(G, losses), losses)
        if self._take_rows is None:
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
        return ops.gram(J)

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
            if self.needs_all_losses and not last:
                return {}
            return self._weigh(total if self.needs_all_losses else losses, total, active, shared, scale, last)
        except BaseException:
            self._forget()
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
        dtype = torch.float64 if all(loss.dtype == torch.float64 for loss in losses.values()) else torch.float32
        objective = (torch.stack([loss.reshape(()).to(dtype) for loss in losses.values()]) * w.to(dtype)).sum()
        if last and (extra := self._regularizer(values(seen) != 0)) is not None:
            objective = objective + extra.to(dtype)
        _backward(objective if scale is None else objective * scale)
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


def _backward(loss: Tensor, retain_graph: bool = False) -> None:
    try:
        loss.backward(retain_graph=retain_graph)
    except RuntimeError as error:
        if "donated buffer" in str(error):
            error.add_note(
                "A compiled model frees its buffers in the first of several backwards. Before compiling it set "
                "torch._functorch.config.donated_buffer = False."
            )
        raise
