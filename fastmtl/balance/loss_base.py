"""The base of loss methods: they weight the losses, so one backward is enough; the heads' gradients are scaled too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fastmtl.balance.replay import still_buffers

from .autograd import backward, weighted_sum
from .base import WeightedBalancer, check_scale, values


class LossBalancer(WeightedBalancer):
    """Base of the methods that weight the losses: one backward of the weighted sum."""

    @still_buffers()
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
            check_scale(scale)
            total, active = self._step_losses(losses, active, last)
            self._tasks = list(losses)
            self._ranks.begin((), self.parameters())
            if self.needs_all_losses and not last:
                return {}
            total, active = self._ranks.losses(total, active)
            return self._weigh(total if self.needs_all_losses else losses, total, active, shared, scale, last)
        except BaseException:
            self._abort()
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
            self._ranks.reduce_others()
            self._ended(total, active, shared, scale)
        return {"weights": w.detach()}

    def _ended(
        self, total: Mapping[str, Tensor], active: Tensor | None, shared: Iterable[Tensor], scale: Tensor | float | None
    ) -> None:
        """All of a step's gradients are there; most methods have nothing to remember of it."""
        return

    def _regularizer(self, active: Tensor) -> Tensor | None:
        """What learned weights add to the objective, once a step; `active` bool [K]."""
        return None
