"""The end of a training step, from losses to updated parameters, for any optimizer; `balance.FusedStep` is faster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import Parameter

from ..protocols import Balancer
from ..utils.phases import phase


class PlainUpdate:
    """balancer.backward -> unscale -> clip -> optimizer.step.

    A step whose losses or gradients are not finite is skipped. The check runs on the device if the optimizer supports
    it (torch's fused optimizers do); otherwise the host waits for the device.

    Args:
        optimizer: any torch optimizer.
        clip_norm: largest norm of the whole gradient; 0 does not clip.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clip_norm: float = 0.0) -> None:
        self.optimizer, self.clip_norm = optimizer, clip_norm

    def __call__(
        self,
        balancer: Balancer,
        losses: Mapping[str, Tensor],
        shared: Iterable[Parameter],
        *,
        scale: GradScaler | None = None,
        active: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """See `protocols.Update`."""
        values = torch.stack([loss.detach().double() for loss in losses.values()])
        number = None if scale is None else scale.scale(torch.ones((), device=values.device))
        done = balancer.backward(losses, shared, scale=number, active=active)
        with phase("optimizer"):
            if scale is not None:
                scale.unscale_(self.optimizer)
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm or float("inf"))
            skipped = ~(values.isfinite().all() & norm.isfinite())
            if scale is not None:
                scale.step(self.optimizer)
            elif getattr(self.optimizer, "_step_supports_amp_scaling", False):
                # torch's fused optimizers read this flag on the device and change nothing if it is set.
                self.optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
                self.optimizer.step()
            elif not bool(skipped):
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return done | {"gradient_norm": norm, "skipped": skipped}


def match_param_layout(optimizer: torch.optim.Optimizer) -> None:
    """Convert the optimizer state to the parameters' memory order: torch's fused CPU optimizers read both in memory
    order and would pair a contiguous moment with the wrong elements of a channels-last weight."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
