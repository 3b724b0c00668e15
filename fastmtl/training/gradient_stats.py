"""Norms and cosines of the task gradients, for balancers that only weight losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from .. import ops
from ..balance.gramian import norms_and_cosines
from ..balance.replay import still_buffers
from ..config import TrainingConfig
from ..utils.phases import phase


def watches(config: TrainingConfig, step: int, balancer: object) -> bool:
    """Whether to `watch` at `step` (from 1): every `gradient_stats_every` steps, rounded up to log steps; never for a
    balancer that records its gradients itself."""
    every = -(-config.gradient_stats_every // config.log_every) * config.log_every
    return every > 0 and step % every == 0 and not getattr(balancer, "sees_gradients", False)


@phase("gradient stats")
def watch(losses: Mapping[str, Tensor], shared: Iterable[Tensor], scale: GradScaler | None = None) -> dict[str, Tensor]:
    """Norms and cosines of the K gradients of `shared`, from K backward passes that keep the graph and every `.grad`.

    Args:
        losses: task -> scalar with a graph, before the step's own backward pass.
        shared: parameters; those that a task does not reach count as 0 in its gradient.
        scale: the GradScaler of the step; without it half-precision gradients underflow.

    Returns:
        "norms" [K] of the unscaled gradients and "cosines" [K, K], float64, as gradient balancers record them; the
        cosine with a zero gradient is 0. With several ranks they cover this rank's images only. {} for a single task.
    """
    if len(losses) < 2:
        return {}
    inputs = [parameter for parameter in shared if parameter.requires_grad]
    factor = torch.ones((), device=inputs[0].device)
    if scale is not None:
        factor = scale.scale(factor)
    with still_buffers():
        rows = [gradient_row(loss * factor, inputs) for loss in losses.values()]
    with torch.no_grad():
        G = ops.gram(torch.stack(rows)) / factor.double() ** 2
        norms, cosines = norms_and_cosines(G)
        return {"norms": norms, "cosines": cosines}


def gradient_row(loss: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """The gradient of a scalar with respect to `inputs`, [P] float32 or float64; keeps the graph and every `.grad`."""
    gradients = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
    flat = [
        torch.zeros_like(parameter).flatten() if gradient is None else gradient.flatten()
        for parameter, gradient in zip(inputs, gradients, strict=True)
    ]
    joined = torch.cat(flat)
    return joined.to(torch.promote_types(joined.dtype, torch.float32))
