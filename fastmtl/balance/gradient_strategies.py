"""Strategies for computing the K task gradients: two exact ones, two approximate ones.

With `reuse` the weights of one step are used for several steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..utils.phases import phase
from ..utils.suggestions import nearest
from .arena import GradientArena, Slot
from .autograd import Scale, backward, last_layer, layer_row, leaves, unreached, vectorised, weighted_sum
from .feature_cut import backward_from_cuts, check_cuts
from .replay import still_buffers
from .single_process import SingleProcess

Losses = Mapping[str, Tensor]


@dataclass(frozen=True)
class StepContext:
    """What a strategy needs in one call of `backward`: the balancer's arena and ranks, and the call's arguments."""

    arena: GradientArena
    ranks: SingleProcess
    shared: list[Tensor]
    scale: Scale
    last: bool
    features: Tensor | Iterable[Tensor] | None = None


class Strategy(ABC):
    """One step: `fill` for each micro-batch, then `rows`, then `leave` with the combined gradient. A step that uses the
    weights of an earlier one (`stale`) has no rows: `fill`, then `reused`."""

    name = ""
    needs_all_losses = False  # as in WeightedBalancer
    fills_arena = False  # whether `rows` are the gradients of the shared parameters themselves

    def __init__(self, reuse: int = 1) -> None:
        self.reuse = reuse
        self._served = 0  # number of steps that used the last weights; 0 if there are none
        self._log: dict[str, Tensor] = {}  # of the step that computed them

    @property
    def stale(self) -> bool:
        """Whether this step uses the weights of an earlier one."""
        return 0 < self._served < self.reuse

    def writes(self, shared: list[Tensor]) -> list[Tensor]:
        """The parameters whose `.grad` gets the combined gradient of all ranks, rather than this rank's own."""
        return []

    def fill(self, step: StepContext, losses: Losses) -> None:
        """Backpropagate a micro-batch."""
        if step.features is not None and self.name != "features":
            raise ValueError(f"`features` requires the strategy 'features'; this balancer uses {self.name!r}.")
        if self.stale:
            self._backward_weighted(step, losses, self._log["weights"])
        else:
            self._fill(step, losses)

    @abstractmethod
    def _fill(self, step: StepContext, losses: Losses) -> None:
        """Backpropagate the K losses of a micro-batch one by one."""

    @abstractmethod
    def rows(self, step: StepContext) -> Tensor:
        """J [K, P] of the step."""

    def splits(self, ranks: SingleProcess) -> bool:
        """Whether `rows` are only this rank's columns."""
        return ranks.splits

    @abstractmethod
    def leave(self, step: StepContext, flat: Tensor, w: Tensor, reached: list[bool]) -> None:
        """Write the combined gradient [P] to `.grad`."""

    def forget(self) -> None:
        """Discard the micro-batches of a failed step."""
        return

    def reused(self) -> dict[str, Tensor]:
        """End a `stale` step; returns the log of the step that computed its weights."""
        self._served = (self._served + 1) % self.reuse
        return dict(self._log)

    def keep(self, log: dict[str, Tensor]) -> None:
        """End a step that computed its weights."""
        if self.reuse == 1:
            return
        w, norms = log["weights"], log["norms"]
        before = self._log["weights"] if self._log else torch.ones_like(w)
        # A skipped step does not change the weights, and a task without labels in it keeps its weight.
        sound = (norms != 0) & w.isfinite().all() & norms.isfinite().all()
        self._log = log | {"weights": torch.where(sound, w, before.to(w.device))}
        self._served = 1

    def state_dict(self) -> dict[str, Any]:
        return {} if self.reuse == 1 else {"reuse": {"served": self._served, **self._log}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.reuse > 1 and "reuse" in state:
            self._log = {name: value for name, value in state["reuse"].items() if name != "served"}
            self._served = state["reuse"]["served"]

    @phase("backward")
    def _backward_weighted(self, step: StepContext, losses: Losses, w: Tensor) -> None:
        """One backward of sum_k w_k L_k for the shared parameters, and one of sum_k L_k for the heads alone."""
        ids = {id(parameter) for parameter in step.shared}
        reached = leaves(losses.values())
        targets = [leaf for leaf in reached if id(leaf) in ids]
        if not targets:
            raise ValueError(unreached(", ".join(losses)))
        heads = [leaf for leaf in reached if id(leaf) not in ids]
        if heads:
            plain = weighted_sum(losses.values(), torch.ones_like(w))
            backward(step.ranks.scaled(plain, step.scale), retain_graph=True, inputs=heads)
        weighted = weighted_sum(losses.values(), w)
        backward(step.ranks.scaled(weighted, step.scale), inputs=targets)


class Sequential(Strategy):
    """K backwards; each is followed by one copy of its gradients to their row. Exact; works with everything."""

    name = "sequential"
    fills_arena = True

    def writes(self, shared: list[Tensor]) -> list[Tensor]:
        return [] if self.stale else shared

    def _fill(self, step: StepContext, losses: Losses) -> None:
        with step.arena.open(step.shared, len(losses)):
            for task, (name, loss) in enumerate(losses.items()):
                with phase(f"backward {name}"):
                    backward(step.ranks.scaled(loss, step.scale), retain_graph=task + 1 < len(losses))
                if not step.arena.take(task):
                    raise ValueError(unreached(name))
                if step.last:
                    step.ranks.launch(step.arena, task)

    def rows(self, step: StepContext) -> Tensor:
        return step.ranks.collect(step.arena)

    def leave(self, step: StepContext, flat: Tensor, w: Tensor, reached: list[bool]) -> None:
        arena, ranks = step.arena, step.ranks
        reached = ranks.agree(arena.layout, reached)
        arena.write(ranks.spread(flat), reached)


class Batched(Sequential):
    """One backward of all tasks at once (vmap over the backward). Exact; the same work and K times the memory for
    gradients of activations and parameters. Does not support reentrant checkpointing or compiled backwards."""

    name = "batched"

    def _fill(self, step: StepContext, losses: Losses) -> None:
        arena = step.arena
        with arena.open(step.shared, len(losses)):
            places = {id(parameter): place for place, parameter in enumerate(arena.parameters)}
            reached = [{id(leaf) for leaf in leaves([loss])} for loss in losses.values()]
            for name, ids in zip(losses, reached, strict=True):
                if not ids & places.keys():
                    raise ValueError(unreached(name))
            inputs = leaves(losses.values())
            scaled = [step.ranks.scaled(loss, step.scale) for loss in losses.values()]
            found: list[dict[int, Tensor]] = [{} for _ in losses]
            with phase("backward"):
                rows = vectorised(scaled, inputs)
            for leaf, gradients in zip(inputs, rows, strict=True):
                if gradients is None:
                    continue
                if id(leaf) in places:
                    for task, ids in enumerate(reached):
                        if id(leaf) in ids:
                            found[task][places[id(leaf)]] = gradients[task]
                else:
                    total = gradients.sum(0)
                    leaf.grad = total if leaf.grad is None else leaf.grad + total
            for task, own in enumerate(found):
                arena.store(task, own)
                if step.last:
                    step.ranks.launch(arena, task)


class Features(Strategy):
    """K backwards to the shared part's outputs, then one backward of the combined gradient through the shared part.

    APPROXIMATE: the Gram matrix is that of the features, not of the parameters. Rows of several micro-batches or ranks
    are concatenated, because they belong to the features of different samples.
    """

    name = "features"

    def __init__(self, reuse: int = 1) -> None:
        super().__init__(reuse)
        self._parts: list[tuple[Tensor, list[tuple[Tensor, Slot]]]] = []  # [K, P_i], and each leaf with its slot

    def _fill(self, step: StepContext, losses: Losses) -> None:
        arena = step.arena
        with arena.open(check_cuts(step.features), len(losses)):
            for task, (name, loss) in enumerate(losses.items()):
                with phase(f"backward {name}"):
                    backward(step.ranks.scaled(loss, step.scale), retain_graph=task + 1 < len(losses))
                if not arena.take(task):
                    raise ValueError(unreached(name, "`features`", "a tensor of"))
        rows = arena.complete()
        slots = zip(arena.parameters, arena.slots, arena.reached(), strict=True)
        # The arena's rows are overwritten at the next micro-batch.
        self._parts.append((rows if step.last else rows.clone(), [(leaf, slot) for leaf, slot, seen in slots if seen]))
        arena.clear()

    def rows(self, step: StepContext) -> Tensor:
        rows = [rows for rows, _ in self._parts]
        return rows[0] if len(rows) == 1 else torch.cat(rows, 1)

    def splits(self, ranks: SingleProcess) -> bool:
        return ranks.size > 1

    def leave(self, step: StepContext, flat: Tensor, w: Tensor, reached: list[bool]) -> None:
        parts = flat.split([rows.shape[1] for rows, _ in self._parts])
        for part, (_, slots) in zip(parts, self._parts, strict=True):
            backward_from_cuts([(leaf, slot.view(part).to(leaf.dtype)) for leaf, slot in slots])
        self.forget()

    def forget(self) -> None:
        self._parts = []

    def _backward_weighted(self, step: StepContext, losses: Losses, w: Tensor) -> None:
        cuts = check_cuts(step.features)
        super()._backward_weighted(replace(step, shared=cuts), losses, w)
        gradients = [(leaf, leaf.grad) for leaf in cuts if leaf.grad is not None]
        for leaf in cuts:
            leaf.grad = None
        backward_from_cuts(gradients)


class LastLayer(Strategy):
    """Weights from the gradients of one layer (K short backwards), then one weighted backward of the whole model.

    APPROXIMATE for methods that are defined on all shared parameters. The graphs of all micro-batches are kept.
    """

    name = "last_layer"
    needs_all_losses = True

    def __init__(self, reuse: int = 1, layer: Tensor | None = None) -> None:
        super().__init__(reuse)
        self.layer = layer
        self._losses: Losses = {}
        self._J = torch.empty(0)

    def _fill(self, step: StepContext, losses: Losses) -> None:
        layer = last_layer(step.shared) if self.layer is None else self.layer
        leaves(losses.values())  # raises before any work if a graph hides parameters
        rows = [layer_row(name, step.ranks.scaled(loss, step.scale), layer) for name, loss in losses.items()]
        self._J, self._losses = step.ranks.total(torch.stack(rows)), losses

    def rows(self, step: StepContext) -> Tensor:
        return self._J

    def splits(self, ranks: SingleProcess) -> bool:
        return False

    def leave(self, step: StepContext, flat: Tensor, w: Tensor, reached: list[bool]) -> None:
        losses = self._losses
        self.forget()
        with torch.enable_grad(), still_buffers():
            self._backward_weighted(step, losses, w)

    def forget(self) -> None:
        self._losses, self._J = {}, torch.empty(0)


_STRATEGIES: dict[str, type[Strategy]] = {kind.name: kind for kind in (Sequential, Batched, Features, LastLayer)}


def create_strategy(name: str, reuse: int = 1, layer: Tensor | None = None) -> Strategy:
    """Create the strategy `name`.

    Raises:
        ValueError: the name is unknown, or an option is out of range.
    """
    if name not in _STRATEGIES:
        raise ValueError(f"unknown `strategy` {name!r}; {nearest(name, list(_STRATEGIES))}")
    if not isinstance(reuse, int) or reuse < 1:
        raise ValueError(f"`reuse` must be an integer number of steps, at least 1; got {reuse!r}.")
    if layer is not None and name != "last_layer":
        raise ValueError(f"`layer` requires the strategy 'last_layer'; got {name!r}.")
    return LastLayer(reuse, layer) if name == "last_layer" else _STRATEGIES[name](reuse)
