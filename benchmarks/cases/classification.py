"""Losses of classifiers and of maps with few pixels, forward and backward, compared with plain torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmtl import ops

from ..registry import Case, Inputs, register
from .dice_ce import formula as dice_ce
from .focal import formula as focal
from .regression import _contender, _run

Loss = Callable[[Tensor, Tensor], Tensor]


def _dice_bce(x: Tensor, t: Tensor) -> Tensor:
    x, t = x.reshape(*x.shape[:2], -1), t.reshape(*t.shape[:2], -1).to(x.dtype)
    p = x.sigmoid()
    dice = 1 - (2 * (p * t).sum(2) + 1e-5) / (p.sum(2) + t.sum(2) + 1e-5)
    return 0.5 * F.binary_cross_entropy_with_logits(x, t) + 0.5 * dice.mean()


def _bce(x: Tensor, t: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(x, t.to(x.dtype))


def _softmax_focal(x: Tensor, t: Tensor) -> Tensor:
    log_p = x.log_softmax(1).gather(1, t.unsqueeze(1))
    return (-((1 - log_p.exp()) ** 2) * log_p).mean()


def _dice_ce(x: Tensor, t: Tensor) -> Tensor:
    return dice_ce(x.unsqueeze(-1), t.unsqueeze(-1)) if x.dim() == 2 else dice_ce(x, t)


def _make(shape: tuple[int, ...], classes: bool, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    of = (shape[0], *shape[2:]) if classes else shape
    target = torch.randint(shape[1] if classes else 2, of, generator=generator)
    logits = torch.randn(shape, generator=generator).to(device)
    return {"input": logits.requires_grad_(), "target": target.to(device) if classes else target.to(device).float()}


def _truth(plain: Loss, inputs: Inputs) -> tuple[Tensor, ...]:
    return _run(plain, inputs["input"].detach().double().requires_grad_(), inputs["target"])


def _register(name: str, shape: tuple[int, ...], ours: Loss, plain: Loss, classes: bool = False) -> None:
    size = torch.Size(shape).numel()
    target = 8 * size // shape[1] if classes else 4 * size
    register(
        Case(
            op=name,
            shape=f"{list(shape)} float32, few pixels",
            mode="forward + backward",
            make=partial(_make, shape, classes),
            contenders={"fastmtl": _contender(lambda: ours), "torch eager": _contender(lambda: plain)},
            # Forward reads input and target; backward reads both again and writes the gradient.
            min_bytes=3 * 4 * size + 2 * target,
            tolerance=1e-4,
            truth=partial(_truth, plain),
        )
    )


for _shape in ((65536, 4), (20000, 4, 4)):
    _register("dice_bce_loss", _shape, ops.dice_bce_loss, _dice_bce)
    _register("bce_with_logits", _shape, ops.bce_with_logits, _bce)
    _register("focal_loss", _shape, ops.focal_loss, focal)
for _shape in ((100000, 10), (20000, 5, 3), (4096, 80), (8, 30000)):
    _register("cross_entropy", _shape, ops.cross_entropy, F.cross_entropy, classes=True)
    _register(
        "focal_loss softmax",
        _shape,
        partial(ops.focal_loss, activation="softmax", alpha=None),
        _softmax_focal,
        classes=True,
    )
for _shape in ((100000, 6), (20000, 5, 3), (4096, 80), (8, 1000), (8, 30000), (1024, 10), (64, 6, 4, 4), (2, 3, 8, 8)):
    _register("dice_ce_loss", _shape, ops.dice_ce_loss, _dice_ce, classes=True)
