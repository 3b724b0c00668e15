"""The base of loss methods. They weight the losses, so one backward is enough, and heads are weighted too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fastmtl.balance.replay import still_buffers

from ..utils.phases import phase
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
            shared: the shared parameters; most methods do not need them.
            scale: the GradScaler's scale; the sum is multiplied by it.
            last: False for all micro-batches of a step except the last; their gradients add up in `.grad`.
            active: bool [K] on the losses' device, which tasks have labels in this micro-batch; None selects tasks
                with a nonzero loss. The other tasks have weight 0 and are left out of means over tasks.

        Returns:
            "weights" [K] float64, detached, for the log.

        Raises:
            ValueError: a loss is not a scalar or has no graph, or the tasks changed.
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
        """One backward of `losses`, with the weights computed from `total`, the losses of the step so far."""
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
        with phase("backward"):
            backward(self._ranks.scaled(objective, scale))
        if last:
            self._ranks.reduce_others()
            self._ended(total, active, shared, scale)
        return {"weights": w.detach()}

    def _ended(
        self, total: Mapping[str, Tensor], active: Tensor | None, shared: Iterable[Tensor], scale: Tensor | float | None
    ) -> None:
        """Called when all gradients of a step are computed; most methods do nothing."""
        return

    def _regularizer(self, active: Tensor) -> Tensor | None:
        """The term that learned weights add to the objective once per step; `active` bool [K]."""
        return None
