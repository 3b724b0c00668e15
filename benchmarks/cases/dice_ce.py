"""Softmax Dice + cross-entropy, and cross-entropy alone, from class maps: MONAI, smp, plain torch, torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmtl import ops

from ..registry import Case, Contender, Inputs, Run, register

Loss = Callable[[Tensor, Tensor], Tensor]


def _make(shape: tuple[int, ...], target_dtype: torch.dtype, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).mul(2).to(device)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
    return {"logits": logits.requires_grad_(), "target": target.to(device, target_dtype)}


def formula(logits: Tensor, target: Tensor) -> Tensor:
    """The plain formula: 0.5 cross-entropy + 0.5 Dice of each sample's classes."""
    index, dims = target.long(), tuple(range(2, logits.dim()))
    one_hot = F.one_hot(index, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    p = logits.softmax(1)
    shared, sizes = (p * one_hot).sum(dims), p.sum(dims) + one_hot.sum(dims)
    dice = 1 - (2 * shared + 1e-5) / (sizes + 1e-5)
    return 0.5 * F.cross_entropy(logits, index) + 0.5 * dice.mean()


def _plain_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target.long())


def _monai() -> Loss:
    from monai.losses.dice import DiceCELoss

    loss = DiceCELoss(softmax=True, to_onehot_y=True, lambda_dice=0.5, lambda_ce=0.5)
    return lambda x, t: loss(x, t.unsqueeze(1))


def _smp() -> Loss:
    from fastmtl.utils.torchvision_guard import make_torchvision_importable

    make_torchvision_importable()
    from segmentation_models_pytorch.losses import DiceLoss

    dice = DiceLoss("multiclass", smooth=1e-5)  # over the whole batch, so the value differs from the others'
    return lambda x, t: 0.5 * F.cross_entropy(x, t.long()) + 0.5 * dice(x, t.long())


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
    op: str,
    ours: Loss,
    plain: Loss,
    shape: tuple[int, ...],
    target_dtype: torch.dtype = torch.uint8,
    *,
    peers: dict[str, Contender] | None = None,
    figures: dict[str, float] | None = None,
) -> None:
    logits, pixels = torch.Size(shape).numel(), torch.Size(shape).numel() // shape[1]
    register(
        Case(
            op=op,
            shape=f"{list(shape)} float32, {str(target_dtype).removeprefix('torch.')} class map",
            mode="forward + backward",
            make=partial(_make, shape, target_dtype),
            contenders={
                "fastmtl": _contender(lambda: ours),
                **(peers or {}),
                "torch eager": _contender(lambda: plain),
                "torch.compile": _contender(lambda: torch.compile(plain)),
            },
            # Forward reads logits and class numbers; backward reads both again and writes the gradient.
            min_bytes=12 * logits + 2 * target_dtype.itemsize * pixels,
            tolerance=1e-4,
            truth=partial(_truth, plain),
            figures=figures or {},
        )
    )


def _dice_ce(shape: tuple[int, ...], target_dtype: torch.dtype = torch.uint8, **figures: float) -> None:
    named = {"MONAI DiceCELoss": figures["monai"], "torch.compile": figures["compiled"]} if figures else {}
    peers = {"MONAI DiceCELoss": _contender(_monai)}
    if shape[0] == 1:  # smp's Dice is over the batch: equal to ours only for one sample
        peers["smp DiceLoss + CE"] = _contender(_smp)
    _register("dice_ce_loss", ops.dice_ce_loss, formula, shape, target_dtype, peers=peers, figures=named)


_dice_ce((4, 6, 512, 512), monai=18, compiled=2.5)
_dice_ce((4, 6, 512, 512), torch.int64)
_dice_ce((1, 6, 1024, 1024))
_dice_ce((2, 14, 64, 64, 64))
_dice_ce((2, 3, 256, 256))
_register("cross_entropy", ops.cross_entropy, _plain_cross_entropy, (4, 6, 512, 512))
_register("cross_entropy", ops.cross_entropy, _plain_cross_entropy, (256, 8), torch.int64)
