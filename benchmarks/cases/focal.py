"""Focal, Tversky and binary cross-entropy losses, forward and backward, compared with peers and the plain formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmtl import ops

from ..registry import Case, register
from .dice_bce import Loss, _contender, _make, _truth


def formula(logits: Tensor, target: Tensor) -> Tensor:
    """The plain formula of the sigmoid focal loss, gamma 2 and alpha 1/4."""
    target = target.to(logits.dtype)
    p = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p_t = p * target + (1 - p) * (1 - target)
    return ((0.25 * target + 0.75 * (1 - target)) * (1 - p_t) ** 2 * entropy).mean()


def tversky(logits: Tensor, target: Tensor) -> Tensor:
    """The plain formula of the Tversky loss, with 0.3 of the false positives and 0.7 of the false negatives."""
    p, t = logits.sigmoid().flatten(2), target.to(logits.dtype).flatten(2)
    hit, wrong, missed = (p * t).sum(2), (p * (1 - t)).sum(2), ((1 - p) * t).sum(2)
    return (1 - (hit + 1e-5) / (hit + 0.3 * wrong + 0.7 * missed + 1e-5)).mean()


def bce(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))


def _monai_focal() -> Loss:
    from monai.losses.focal_loss import FocalLoss

    return FocalLoss(gamma=2.0, alpha=0.25)


def _monai_tversky() -> Loss:
    from monai.losses.tversky import TverskyLoss

    return TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7)


def _smp_focal() -> Loss:
    from fastmtl.utils.torchvision_guard import make_torchvision_importable

    make_torchvision_importable()
    from segmentation_models_pytorch.losses import FocalLoss

    return FocalLoss("binary", alpha=0.25, gamma=2.0)


def _torchvision_focal() -> Loss:
    from fastmtl.utils.torchvision_guard import make_torchvision_importable

    make_torchvision_importable()
    from torchvision.ops import sigmoid_focal_loss

    return lambda x, t: sigmoid_focal_loss(x, t.to(x.dtype), alpha=0.25, gamma=2.0, reduction="mean")


def _register(
    op: str,
    ours: Loss,
    plain: Loss,
    peers: Mapping[str, Callable[[], Loss]],
    figures: Mapping[str, float] | None = None,
    shape: tuple[int, ...] = (8, 1, 1024, 1024),
    dtype: torch.dtype = torch.float32,
) -> None:
    count, size = torch.Size(shape).numel(), torch.finfo(dtype).bits // 8
    register(
        Case(
            op=op,
            shape=f"{list(shape)} {str(dtype).removeprefix('torch.')}, uint8 target",
            mode="forward + backward",
            make=partial(_make, shape, dtype),
            contenders={
                "fastmtl": _contender(lambda: ours),
                **{name: _contender(make) for name, make in peers.items()},
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


_FOCAL = {
    "MONAI FocalLoss": _monai_focal,
    "smp FocalLoss": _smp_focal,
    "torchvision sigmoid_focal_loss": _torchvision_focal,
}
_register("focal_loss", ops.focal_loss, formula, _FOCAL, {"torch eager": 40, "torch.compile": 5})
_register("focal_loss", ops.focal_loss, formula, {}, dtype=torch.bfloat16)
_register("focal_loss", ops.focal_loss, formula, {}, shape=(2, 3, 256, 256))
_register(
    "tversky_loss",
    partial(ops.tversky_loss, alpha=0.3, beta=0.7),
    tversky,
    {"MONAI TverskyLoss": _monai_tversky},
)
_register("bce_with_logits", ops.bce_with_logits, bce, {})
