"""The losses element by element in plain torch, for arguments that the fused sums do not support; slower, same results.

Used for probabilities instead of logits (no activation, or a custom one), for soft targets that need another formula,
and for losses without reduction.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from ..ops.core.checks import may_look, unit_or_nan
from ..ops.core.class_checks import check_numbers


def is_hard(target: Tensor) -> bool:
    """Whether the target is known to hold only 0 and 1. Floats are checked on the CPU only: a GPU would block."""
    if not target.is_floating_point():
        return True
    return target.device.type == "cpu" and not torch.compiler.is_compiling() and torch.equal(target * target, target)


def one_hot(index: Tensor, classes: int, valid: Tensor | None = None) -> Tensor:
    """Class numbers [B, 1, *spatial] as bool [B, C, *spatial]; invalid pixels may hold any number and become False."""
    if may_look(index):
        check_numbers(index, classes, valid)
    index = index.long() if valid is None else torch.where(valid, index, 0).long()
    hot = torch.zeros(index.shape[0], classes, *index.shape[2:], dtype=torch.bool, device=index.device)
    hot = hot.scatter_(1, index, True)
    return hot if valid is None else hot & valid


def overlap(
    p: Tensor,  # probabilities, or the raw network output, [B, C, *spatial]
    t: Tensor,  # the same shape
    mask: Tensor | None,  # broadcastable; 0 to 1
    *,
    squared: bool = False,  # sums of squares
    soft: bool = False,  # the intersection is sum min(p, t), right for soft targets; else sum p t
    absolute: bool = False,  # with `soft`: P and T are norms, as in MONAI; they differ where p is 0 or below
) -> tuple[Tensor, Tensor, Tensor]:
    """Intersection, prediction and target sums [B, C] of p and t; differentiable in both."""
    t = unit_or_nan(t, mask)
    if mask is not None:
        p, t = p * mask, t * mask
    if p.dim() == 2:
        p, t = p.unsqueeze(-1), t.unsqueeze(-1)
    p, t = p.flatten(2), t.to(p.dtype).flatten(2)
    if squared:
        return (p * t).sum(2), (p * p).sum(2), (t * t).sum(2)
    if not soft:
        return (p * t).sum(2), p.sum(2), t.sum(2)
    of_p, of_t = (p.abs().sum(2), t.abs().sum(2)) if absolute else (p.sum(2), t.sum(2))
    return (of_p + of_t - (p - t).abs().sum(2)) / 2, of_p, of_t


def sigmoid_focal(x: Tensor, t: Tensor, gamma: float) -> Tensor:
    """Each element's focal loss; a soft target's factor is sigmoid(-x (2t - 1))^gamma, as MONAI defines it."""
    factor = (gamma * logsigmoid(-x * (2 * t - 1))).exp()
    return factor * binary_cross_entropy_with_logits(x, t, reduction="none")


def softmax_focal(x: Tensor, t: Tensor, gamma: float) -> Tensor:
    """Each element's -(1 - p)^gamma t log p with p the softmax over C."""
    log_p = x.log_softmax(1)
    others = (-log_p.expm1()).clamp_min(torch.finfo(x.dtype).tiny)  # the gradient of a root is infinite at 0
    return -(others**gamma) * t * log_p


def focal_term(cost: Tensor, gamma: float, threshold: float | None) -> Tensor:
    """(1 - exp(-cost))^gamma, with a threshold 1 below it and divided by it above: smp's reduced focal loss."""
    p = torch.exp(-cost)
    if threshold is None:
        return (1 - p) ** gamma
    return torch.where(p < threshold, 1.0, ((1 - p) / threshold) ** gamma)
