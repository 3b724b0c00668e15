"""Losses of volumes [B, C, D, H, W], in both memory formats: the values and gradients of MONAI or torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from helpers.op_backends import KERNELS, dirty_memory
from torch import Tensor
from torch.nn import functional as F

from fastmtl import ops

monai = pytest.importorskip("monai.losses", reason="MONAI comes with the extra [bench]")

pytestmark = dirty_memory
CLASSES, SIZE = 4, (6, 5, 8)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}
BOTH = {"ce_weight": 1.0, "dice_weight": 1.0}
Loss = Callable[..., Any]  # (logits or features and layer, target) -> a scalar


def _dice_bce(x: Tensor, target: Tensor) -> Tensor:
    return monai.DiceLoss(sigmoid=True)(x, target) + F.binary_cross_entropy_with_logits(x, target)


def _of_numbers(loss: torch.nn.Module) -> Loss:
    return lambda x, target: loss(x, target.unsqueeze(1))


def _deep(loss: Any, heads: Sequence[Tensor], target: Tensor) -> Tensor:
    theirs = monai.DeepSupervisionLoss(loss, weights=[1.0, 0.5])
    theirs.interp_mode = (
        "nearest"  # its "nearest-exact" reads a window's centre, torch's and nnU-Net's "nearest" the first
    )
    return theirs(list(heads), target)


def _softmax_focal(x: Tensor, target: Tensor) -> Tensor:
    """MONAI's mean is one over classes too."""
    return CLASSES * monai.FocalLoss(use_softmax=True, to_onehot_y=True)(x, target.unsqueeze(1))


DICE_CE = monai.DiceCELoss(softmax=True, to_onehot_y=True)
SIGMOID: dict[str, tuple[Loss, Loss]] = {
    "dice_bce_loss": (partial(ops.dice_bce_loss, bce_weight=1.0, dice_weight=1.0), _dice_bce),
    "focal_loss": (ops.focal_loss, monai.FocalLoss(gamma=2.0, alpha=0.25)),
    "tversky_loss": (
        partial(ops.tversky_loss, alpha=0.3, beta=0.7),
        monai.TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7),
    ),
    "bce_with_logits": (ops.bce_with_logits, F.binary_cross_entropy_with_logits),
}
SOFTMAX: dict[str, tuple[Loss, Loss]] = {
    "dice_ce_loss": (partial(ops.dice_ce_loss, **BOTH), _of_numbers(DICE_CE)),
    "focal_loss": (partial(ops.focal_loss, activation="softmax", alpha=None), _softmax_focal),
    "tversky_loss": (
        partial(ops.tversky_loss, activation="softmax", alpha=0.3, beta=0.7),
        _of_numbers(monai.TverskyLoss(softmax=True, to_onehot_y=True, alpha=0.3, beta=0.7)),
    ),
    "cross_entropy": (ops.cross_entropy, F.cross_entropy),
}


@pytest.fixture(params=FORMATS)
def memory_format(request) -> torch.memory_format:
    return FORMATS[request.param]


def _volume(channels: int, memory_format: torch.memory_format, size: tuple[int, ...] = SIZE) -> Tensor:
    x = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(channels + size[0]))
    return x.to(memory_format=memory_format).requires_grad_()


def _target(activation: str) -> Tensor:
    drawn = torch.Generator().manual_seed(1)
    if activation == "softmax":
        return torch.randint(0, CLASSES, (2, *SIZE), generator=drawn)
    return torch.randint(0, 2, (2, CLASSES, *SIZE), generator=drawn).float()


def _assert_same(ours: Tensor, theirs: Tensor, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradients."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(ours, given)
    torch.testing.assert_close(found, torch.autograd.grad(theirs, given), rtol=1e-4, atol=1e-6)
    return found


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(
    ("activation", "name"), [*(("sigmoid", name) for name in SIGMOID), *(("softmax", name) for name in SOFTMAX)]
)
def test_losses_of_logits(activation, name, backend, memory_format):
    ours, theirs = (SIGMOID if activation == "sigmoid" else SOFTMAX)[name]
    x, target = _volume(CLASSES, memory_format), _target(activation)
    (found,) = _assert_same(ours(x, target, backend=backend), theirs(x, target), [x])
    assert found.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_deep_supervision_over_unequal_strides(activation, backend, memory_format):
    heads = [_volume(CLASSES, memory_format), _volume(CLASSES, memory_format, (3, 5, 4))]
    target = _target(activation)
    options: dict[str, Any] = {"activation": activation, "pointwise_weight": 1.0, "dice_weight": 1.0}
    ours = ops.deep_supervision_loss(heads, target, weights=[1.0, 0.5], backend=backend, **options)
    loss, full = (DICE_CE, target.unsqueeze(1).float()) if activation == "softmax" else (_dice_bce, target)
    for found in _assert_same(ours, _deep(loss, heads, full), heads):
        assert found.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_losses_of_a_linear_layer(activation, fuse, memory_format):
    features, target = _volume(7, memory_format), _target(activation)
    layer = torch.nn.Conv3d(7, CLASSES, 1)
    given = [features, layer.weight, layer.bias]
    if activation == "softmax":
        ours, theirs = ops.linear_dice_ce_loss(*given, target, fuse=fuse, **BOTH), SOFTMAX["dice_ce_loss"][1]
    else:
        weights = {"bce_weight": 1.0, "dice_weight": 1.0}
        ours, theirs = ops.linear_dice_bce_loss(*given, target, fuse=fuse, **weights), _dice_bce
    found = _assert_same(ours, theirs(layer(features), target), given)[0]
    assert not fuse or found.is_contiguous(memory_format=memory_format)
