"""Heads at strides 1, 2, 4, 8 against one mask, forward and backward: MONAI, the plain loop, torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmtl import ops

from ..registry import Case, Contender, Inputs, Run, register
from .dice_bce import formula

Loss = Callable[[list[Tensor], Tensor], Tensor]
STRIDES = (1, 2, 4, 8)


def _make(shape: tuple[int, ...], device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(shape, generator=generator).lt(0.3).to(device, torch.uint8)
    sizes = [(*shape[:2], *(size // stride for size in shape[2:])) for stride in STRIDES]
    heads = [torch.randn(size, generator=generator).mul(2).to(device).requires_grad_() for size in sizes]
    return {"heads": heads, "target": target}


def plain(heads: list[Tensor], target: Tensor, mode: str = "nearest") -> Tensor:
    """The usual loop; "max" uses adaptive pooling, because `F.interpolate` does not support it."""
    total = heads[0].new_zeros(())
    for logits in heads:
        size = logits.shape[2:]
        if mode == "max":
            small = F.adaptive_max_pool2d(target.to(logits.dtype), list(size))
        else:
            small = F.interpolate(target.to(logits.dtype), size, mode=mode)
        total = total + formula(logits, small)
    return total


def _monai() -> Loss:
    from monai.losses.dice import DiceCELoss
    from monai.losses.ds_loss import DeepSupervisionLoss

    one = DiceCELoss(sigmoid=True, lambda_dice=0.5, lambda_ce=0.5)
    loss: Any = DeepSupervisionLoss(one, weight_mode="same")
    loss.interp_mode = "nearest"  # the default samples the middle of a window, and there is no argument for it
    return lambda heads, target: loss(heads, target.to(heads[0].dtype))


def _contender(make_loss: Callable[[], Loss]) -> Contender:
    def prepare(inputs: Inputs) -> Run:
        heads, target, loss = inputs["heads"], inputs["target"], make_loss()

        def run() -> tuple[Tensor, ...]:
            value = loss(heads, target)
            return value.detach(), *torch.autograd.grad(value, heads)

        return run

    return prepare


def _truth(mode: str, inputs: Inputs) -> tuple[Tensor, ...]:
    heads = [x.detach().double().requires_grad_() for x in inputs["heads"]]
    value = plain(heads, inputs["target"], mode)
    return value.detach(), *torch.autograd.grad(value, heads)


def _register(shape: tuple[int, ...], mode: str) -> None:
    pixels = torch.Size(shape).numel()
    logits = sum(pixels // stride**2 for stride in STRIDES)
    loop = partial(plain, mode=mode)
    contenders = {"fastmtl": _contender(lambda: partial(ops.deep_supervision_loss, downsample=mode))}
    if mode == "nearest":
        contenders["MONAI DeepSupervisionLoss"] = _contender(_monai)
    contenders["torch eager"] = _contender(lambda: loop)
    contenders["torch.compile"] = _contender(lambda: torch.compile(loop))
    register(
        Case(
            op="deep_supervision_loss",
            shape=f"uint8 mask {list(shape)}, float32 heads of strides {', '.join(map(str, STRIDES))}, {mode}",
            mode="forward + backward",
            make=partial(_make, shape),
            contenders=contenders,
            # Forward reads logits and mask; backward reads both again and writes the gradients.
            min_bytes=2 * (4 * logits + pixels) + 4 * logits,
            tolerance=1e-4,
            truth=partial(_truth, mode),
        )
    )


for how in ("nearest", "area", "max"):
    _register((4, 1, 512, 512), how)
