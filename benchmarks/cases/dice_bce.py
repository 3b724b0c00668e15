"""Dice + binary cross-entropy, forward and backward, compared with MONAI, smp, plain torch and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmtl import ops

from ..registry import Case, Contender, Inputs, Run, register

Loss = Callable[[Tensor, Tensor], Tensor]


def _make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).mul(2).to(device, dtype)
    target = torch.rand(shape, generator=generator).lt(0.3).to(device, torch.uint8)
    return {"logits": logits.requires_grad_(), "target": target}


def formula(logits: Tensor, target: Tensor, dims: tuple[int, ...] = (2, 3)) -> Tensor:
    """The plain formula: 0.5 BCE + 0.5 Dice, Dice summed over `dims`."""
    target = target.to(logits.dtype)
    bce = F.binary_cross_entropy_with_logits(logits, target)
    p = logits.sigmoid()
    shared, sizes = (p * target).sum(dims), p.sum(dims) + target.sum(dims)
    return 0.5 * bce + 0.5 * (1 - (2 * shared + 1e-5) / (sizes + 1e-5)).mean()


def _monai() -> Loss:
    from monai.losses.dice import DiceLoss

    dice = DiceLoss(sigmoid=True)
    return lambda x, t: 0.5 * F.binary_cross_entropy_with_logits(x, t.to(x.dtype)) + 0.5 * dice(x, t)


def _smp() -> Loss:
    from fastmtl.utils.torchvision_guard import make_torchvision_importable

    make_torchvision_importable()
    from segmentation_models_pytorch.losses import DiceLoss, SoftBCEWithLogitsLoss

    dice, bce = DiceLoss("binary", smooth=1e-5), SoftBCEWithLogitsLoss()
    return lambda x, t: 0.5 * bce(x, t.to(x.dtype)) + 0.5 * dice(x, t)


def _contender(make_loss: Callable[[], Loss]) -> Contender:
    def prepare(inputs: Inputs) -> Run:
        logits, target, loss = inputs["logits"], inputs["target"], make_loss()

        def run() -> tuple[Tensor, ...]:
            value = loss(logits, target)
            (gradient,) = torch.autograd.grad(value, logits)
            return value.detach(), gradient

        return run

    return prepare


def _truth(plain: Loss, inputs: Inputs) -> tuple[Tensor, ...]:
    logits = inputs["logits"].detach().double().requires_grad_()
    value = plain(logits, inputs["target"])
    return value.detach(), torch.autograd.grad(value, logits)[0]


def _register(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    batch: bool = False,
    figures: dict[str, float] | None = None,
) -> None:
    count, size = torch.Size(shape).numel(), torch.finfo(dtype).bits // 8
    plain = partial(formula, dims=(0, 2, 3) if batch else (2, 3))
    peer = {"smp DiceLoss + BCE": _contender(_smp)} if batch else {"MONAI DiceLoss + BCE": _contender(_monai)}
    register(
        Case(
            op="dice_bce_loss",
            shape=f"{list(shape)} {str(dtype).removeprefix('torch.')}, uint8 target{', batch Dice' if batch else ''}",
            mode="forward + backward",
            make=partial(_make, shape, dtype),
            contenders={
                "fastmtl": _contender(lambda: partial(ops.dice_bce_loss, batch=batch)),
                **peer,
                "torch eager": _contender(lambda: plain),
                "torch.compile": _contender(lambda: torch.compile(plain)),
            },
            # Forward reads logits and target; backward reads both again and writes the gradient.
            min_bytes=count * (2 * (size + 1) + size),
            tolerance=1e-4 if dtype == torch.float32 else 0.05,
            truth=partial(_truth, plain),
            figures=figures or {},
        )
    )


_register((8, 1, 1024, 1024), figures={"MONAI DiceLoss + BCE": 20, "torch.compile": 6})
_register((8, 1, 1024, 1024), batch=True)
_register((8, 1, 1024, 1024), torch.bfloat16)
_register((2, 3, 256, 256))
