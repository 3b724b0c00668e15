"""Dice + cross-entropy fused with the 1x1 convolution before it, compared with the two steps: ours, MONAI's, plain."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmtl import ops

from ..registry import Case, Contender, Inputs, register
from .dice_ce import formula

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
FEATURES, PIXELS, BATCH = 32, 512, 2


def _make(classes: int, dtype: torch.dtype, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()

    target = torch.randint(0, classes, (BATCH, PIXELS, PIXELS), generator=generator)
    return {
        "layer": (drawn(BATCH, FEATURES, PIXELS, PIXELS), drawn(classes, FEATURES, 1, 1), drawn(classes)),
        "target": target.to(device, torch.uint8),
    }


def _fused(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    return ops.linear_dice_ce_loss(x, weight, bias, target, fuse=True)


def _of_logits(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    return lambda x, weight, bias, target: loss(F.conv2d(x, weight, bias), target)


def _monai() -> Loss:
    from monai.losses.dice import DiceCELoss

    loss = DiceCELoss(softmax=True, to_onehot_y=True, lambda_dice=0.5, lambda_ce=0.5)
    return _of_logits(lambda logits, target: loss(logits, target.unsqueeze(1)))


def _run(loss: Loss, layer: tuple[Tensor, Tensor, Tensor], target: Tensor) -> tuple[Tensor, ...]:
    value = loss(*layer, target)
    return value.detach(), *torch.autograd.grad(value, layer)


def _contender(make_loss: Callable[[], Loss]) -> Contender:
    return lambda inputs: partial(_run, make_loss(), inputs["layer"], inputs["target"])


def _truth(inputs: Inputs) -> tuple[Tensor, ...]:
    x, weight, bias = (one.detach().double().requires_grad_() for one in inputs["layer"])
    return _run(_of_logits(formula), (x, weight, bias), inputs["target"])


def _register(classes: int, dtype: torch.dtype, figures: dict[str, float]) -> None:
    pixels, size = BATCH * PIXELS * PIXELS, torch.finfo(dtype).bits // 8
    register(
        Case(
            op="linear_dice_ce_loss",
            shape=f"[{BATCH}, {FEATURES}, {PIXELS}, {PIXELS}] {str(dtype).removeprefix('torch.')}, {classes} classes",
            mode="forward + backward",
            make=partial(_make, classes, dtype),
            contenders={
                "fastmtl": _contender(lambda: _fused),
                "1x1 convolution, fastmtl's dice_ce_loss": _contender(lambda: _of_logits(ops.dice_ce_loss)),
                "1x1 convolution, MONAI": _contender(_monai),
                "torch eager": _contender(lambda: _of_logits(formula)),
            },
            min_bytes=pixels * (3 * FEATURES * size + 2),  # features and class numbers twice, the features' gradient
            tolerance=2e-3 if dtype == torch.float32 else 0.05,  # a convolution adds its bias's gradient in float32
            truth=_truth,
            figures=figures,
        )
    )


_register(100, torch.float32, {"1x1 convolution, fastmtl's dice_ce_loss": 0.8})
_register(100, torch.bfloat16, {"1x1 convolution, fastmtl's dice_ce_loss": 0.8})
_register(6, torch.float32, {"1x1 convolution, fastmtl's dice_ce_loss": 0.95})
