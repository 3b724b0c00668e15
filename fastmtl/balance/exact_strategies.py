"""How the K gradients are come by: K backwards, or one vectorised one. Weights may serve several steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._autograd import Scale, backward, leaves, unreached, vectorised, weighted_sum

if TYPE_CHECKING:
    from .gradient_balancer import GradientBalancer


class Strategy(ABC):
    """One step: `fill` at each micro-batch, `rows` and `leave` in the balancer's `_combine`.

    The balancer is passed in and never kept: a cycle would keep its arena alive.
    """

    name = ""
    needs_all_losses = False  # as a balancer's
    fills_arena = False  # whether `rows` are the gradients of the shared parameters themselves

    def __init__(self, reuse: int = 1) -> None:
        self.reuse = reuse
        self._served = 0  # steps that the last weights have served; 0 if there are none
        self._log: dict[str, Tensor] = {}  # of the step that measured them

    @property
    def stale(self) -> bool:
        """Whether this step takes the weights of an earlier one."""
        return 0 < self._served < self.reuse

    def writes(self, shared: Iterable[Tensor]) -> Iterable[Tensor]:
        """The parameters whose `.grad` gets the combined gradient of all ranks, rather than this rank's own."""
        return ()

    def fill(
        self,
        balancer: GradientBalancer,
        losses: Mapping[str, Tensor],
        shared: Iterable[Tensor],
        scale: Scale,
        last: bool,
        features: Tensor | Iterable[Tensor] | None,
    ) -> None:
        """Backpropagate a micro-batch."""
        if features is not None and self.name != "features":
            raise ValueError(f"`features` belongs to the strategy 'features'; this balancer's is {self.name!r}.")
        if self.stale:
            self._weigh(balancer, losses, shared, scale, self._log["weights"], features)
        else:
            self._fill(balancer, losses, shared, scale, last, features)

    @abstractmethod
    def _fill(self, balancer, losses, shared, scale, last, features) -> None:
        """Backpropagate the K losses of a micro-batch by themselves."""

    @abstractmethod
    def rows(self, balancer: GradientBalancer) -> Tensor:
        """J [K, P] of the step."""

    @abstractmethod
    def leave(self, balancer: GradientBalancer, flat: Tensor, w: Tensor) -> None:
        """Put the combined gradient where the optimizer looks for it."""

    def forget(self) -> None:
        """The step failed: drop what micro-batches left."""
        return

    def finish(
        self, balancer: GradientBalancer, losses: Mapping[str, Tensor], scale: Scale, active: Tensor | None
    ) -> dict[str, Tensor]:
        """The end of a step; what it returns is logged."""
        if self.stale:
            self._served = (self._served + 1) % self.reuse
            return dict(self._log)
        done = balancer._combine(losses, scale, active)
        if self.reuse > 1:
            self._keep(done)
        return done

    def _keep(self, done: dict[str, Tensor]) -> None:
        w, norms = done["weights"], done["norms"]
        before = self._log["weights"] if self._log else torch.ones_like(w)
        # A step that is skipped teaches nothing, and a task without labels in it keeps the weight it had.
        sound = (norms != 0) & w.isfinite().all() & norms.isfinite().all()
        self._log = done | {"weights": torch.where(sound, w, before.to(w.device))}
        self._served = 1 % self.reuse

    def state_dict(self) -> dict[str, Any]:
        if self.reuse == 1:
            return {}
        return {"reuse": {"served": self._served, **self._log}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.reuse > 1 and "reuse" in state:
            self._log = {name: value for name, value in state["reuse"].items() if name != "served"}
            self._served = state["reuse"]["served"]

    def _weigh(
        self,
        balancer: GradientBalancer,
        losses: Mapping[str, Tensor],
        shared: Iterable[Tensor],
        scale: Scale,
        w: Tensor,
        features: Tensor | Iterable[Tensor] | None = None,
    ) -> None:
        """One backward of sum_k w_k L_k for the shared parameters, and one of sum_k L_k for the heads alone."""
        ids = {id(parameter) for parameter in shared}
        reached = leaves(losses.values())
        targets = [leaf for leaf in reached if id(leaf) in ids]
        if not targets:
            raise ValueError(unreached(", ".join(losses)))
        heads = [leaf for leaf in reached if id(leaf) not in ids]
        if heads:
            plain = weighted_sum(losses.values(), torch.ones_like(w))
            backward(balancer._ranks.scaled(plain, scale), retain_graph=True, inputs=heads)
        weighted = weighted_sum(losses.values(), w)
        backward(balancer._ranks.scaled(weighted, scale), inputs=targets)


class Sequential(Strategy):
    """K backwards, each moved into its row while it is in the cache. Exact; works with everything."""

    name = "sequential"
    fills_arena = True

    def writes(self, shared: Iterable[Tensor]) -> Iterable[Tensor]:
        return () if self.stale else shared

    def _fill(self, balancer, losses, shared, scale, last, features) -> None:
        arena, ranks = balancer._arena, balancer._ranks
        with arena.open(shared, len(losses)):
            for task, (name, loss) in enumerate(losses.items()):
                with arena.record(task) as reached:
                    backward(ranks.scaled(loss, scale), retain_graph=task + 1 < len(losses))
                if not reached:
                    raise ValueError(unreached(name))
                if last:
                    ranks.launch(arena, task)

    def rows(self, balancer: GradientBalancer) -> Tensor:
        balancer._split = balancer._ranks.splits
        return balancer._ranks.collect(balancer._arena)

    def leave(self, balancer: GradientBalancer, flat: Tensor, w: Tensor) -> None:
        arena, ranks = balancer._arena, balancer._ranks
        arena.write_also(ranks.agree(arena.layout, arena.reached()))
        arena.write(ranks.spread(flat))


class Batched(Sequential):
    """One backward of all tasks at once (vmap over the backward). Exact; the same work and K times the memory for
    gradients of activations and parameters. Not with reentrant checkpointing or compiled backwards."""

    name = "batched"

    def _fill(self, balancer, losses, shared, scale, last, features) -> None:
        arena, ranks = balancer._arena, balancer._ranks
        with arena.open(shared, len(losses)):
            places = {id(parameter): place for place, parameter in enumerate(arena.parameters)}
            reached = [{id(leaf) for leaf in leaves([loss])} for loss in losses.values()]
            for name, ids in zip(losses, reached, strict=True):
                if not ids & places.keys():
                    raise ValueError(unreached(name))
            inputs = leaves(losses.values())
            for leaf, gradients in zip(inputs, vectorised(losses, inputs, ranks, scale), strict=True):
                if gradients is None:
                    continue
                if id(leaf) in places:
                    for task, ids in enumerate(reached):
                        if id(leaf) in ids:
                            arena.take(task, places[id(leaf)], gradients[task])
                else:
                    total = gradients.sum(0)
                    leaf.grad = total if leaf.grad is None else leaf.grad + total
            if last:
                for task in range(len(losses)):
                    ranks.launch(arena, task)
