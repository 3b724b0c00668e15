"""The end of a training step, from losses to updated parameters, for any optimizer; `balance.FusedStep` is faster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import Parameter

from ..protocols import Balancer
from ..utils.phases import phase
from .shards import is_shard, scale_to_norm, total_norm


class PlainUpdate:
    """balancer.backward -> unscale -> clip -> optimizer.step.

    A step whose losses or gradients are not finite is skipped. The check runs on the device if the optimizer supports
    it (torch's fused optimizers do); otherwise the host waits for the device.

    With FSDP2 the optimizer steps one parameter at a time: torch's fused and foreach steps refuse a list of shards and
    whole tensors, which the balancer's learned weights are, and fused SGD refuses shards.

    Args:
        optimizer: any torch optimizer.
        clip_norm: largest norm of the whole gradient; 0 does not clip.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clip_norm: float = 0.0) -> None:
        self.optimizer, self.clip_norm = optimizer, clip_norm
        if any(is_shard(parameter) for group in optimizer.param_groups for parameter in group["params"]):
            for group in optimizer.param_groups:
                group |= {name: False for name in ("fused", "foreach") if name in group}
            optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # as fused ones do

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
            norm = _clip(parameters, self.clip_norm or float("inf"))
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


def _clip(parameters: list[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients to at most `max_norm`; returns their norm before it."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not any(map(is_shard, gradients)):
        return nn.utils.clip_grad_norm_(parameters, max_norm)
    norm = total_norm(gradients)
    scale_to_norm(gradients, norm, max_norm, 1e-6)
    return norm


def match_param_layout(optimizer: torch.optim.Optimizer) -> None:
    """Convert the optimizer state to the parameters' memory order: torch's fused CPU optimizers read both in memory
    order and would pair a contiguous moment with the wrong elements of a channels-last weight."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
