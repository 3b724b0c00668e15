"""Definition of the fused step's arithmetic: one parameter's step, each operation rounded to the parameter's dtype.

Numbers are float64 until they are combined with a tensor: p, g, m, v have one shape and dtype; `t` (steps including
this one), `lr` and `factor` are numbers or float64 tensors of one element. All functions return new tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

Number = float | Tensor


def adam(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, t: Number, lr: Number, factor: Number, *,
    beta1: float, beta2: float, eps: float, weight_decay: float, decoupled: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Adam, or AdamW if `decoupled`: the new (p, m, v)."""
    rate, root = lr / (1 - beta1**t), 1 / (1 - beta2**t) ** 0.5
    g = g * _to(factor, g)
    if decoupled:
        p = p * _to(1 - lr * weight_decay, p)
    else:
        g = g + p * _to(weight_decay, p)
    m = m + (g - m) * _to(1 - beta1, p)
    v = v * _to(beta2, p) + (g * g) * _to(1 - beta2, p)
    size = v.double().sqrt().to(v.dtype)  # torch's float32 square root is one bit off in one case of five
    return p - (m / (size * _to(root, p) + _to(eps, p))) * _to(rate, p), m, v


def sgd(
    p: Tensor, g: Tensor, m: Tensor | None, t: Number, lr: Number, factor: Number, *,
    momentum: float, dampening: float, nesterov: bool, weight_decay: float,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """SGD: the new (p, m); without momentum m is None. At t = 1 there is no dampening."""
    g = g * _to(factor, g) + p * _to(weight_decay, p)
    if m is None:
        return p - g * _to(lr, p), None
    fresh = 1.0 - dampening
    if isinstance(t, Tensor):
        fresh = torch.where(t == 1, torch.ones_like(t), fresh)
    elif t == 1:
        fresh = 1.0
    m = m * _to(momentum, p) + g * _to(fresh, p)
    step = g + m * _to(momentum, p) if nesterov else m
    return p - step * _to(lr, p), m


def _to(number: Number, like: Tensor) -> Tensor:
    """Rounded once on the tensor's device, without waiting for it."""
    if isinstance(number, Tensor):
        return number.to(like.device, like.dtype)
    return torch.full((), number, dtype=like.dtype, device=like.device)
