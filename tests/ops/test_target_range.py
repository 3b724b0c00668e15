"""Targets outside 0 to 1, for example a mask of 0 and 255 with a small lesion: refused by every loss on masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastmtl import losses, ops
from fastmtl.losses import monai, nnunet, smp
from fastmtl.ops.core import backends

OPS = {
    "dice_bce": ops.dice_bce_loss,
    "dice_bce over the batch": lambda x, t, **k: ops.dice_bce_loss(x, t, batch=True, squared_pred=True, **k),
    "dice": lambda x, t, **k: ops.dice_bce_loss(x, t, bce_weight=0.0, **k),
    "none": lambda x, t, **k: ops.dice_bce_loss(x, t, reduction="none", **k).sum(),
    "counts": lambda x, t, **k: ops.dice_bce_loss(x, t, return_counts=True, **k)[0],
    "focal": ops.focal_loss,
    "focal none": lambda x, t, **k: ops.focal_loss(x, t, gamma=1.5, reduction="none", **k).sum(),
    "bce": ops.bce_with_logits,
    "bce none": lambda x, t, **k: ops.bce_with_logits(x, t, reduction="none", **k).sum(),
    "bce weighted": lambda x, t, **k: ops.bce_with_logits(x, t, torch.ones_like(x), **k),
    "tversky": ops.tversky_loss,
    "sums": lambda x, t, **k: sum(part.sum() for part in ops.overlap_sums(x, t, **k)),
    "deep supervision": lambda x, t, **k: ops.deep_supervision_loss([x], t, **k),
}
DTYPES = (
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)
REFUSED = r"`target` must lie in 0 to 1; got"


def logits(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def lesion(value: float, dtype: torch.dtype = torch.uint8, *shape: int) -> Tensor:
    """`value` at one element, 0 elsewhere."""
    target = torch.zeros(*(shape or (2, 1, 96, 96)), dtype=dtype)
    target.flatten()[37] = value
    return target


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("op", OPS)
def test_one_pixel_of_255_is_refused(op, dtype):
    value = 200 if dtype.is_floating_point else 255
    with pytest.raises(ValueError, match=rf"{REFUSED} {value}\. Turn a 0/255 mask into 0/1: target > 127"):
        OPS[op](logits(2, 1, 96, 96), lesion(value, dtype))


@pytest.mark.parametrize("shape", [(300, 3, 5, 1), (64, 2, 1, 1), (2, 3, 33, 31), (1, 1, 5000, 1)])
@pytest.mark.parametrize("op", [op for op in OPS if op != "deep supervision"])
def test_in_planes_of_any_size(op, shape):
    """Maps of few pixels have separate kernels."""
    OPS[op](logits(*shape), lesion(1, torch.uint8, *shape))
    with pytest.raises(ValueError, match=REFUSED):
        OPS[op](logits(*shape), lesion(255, torch.uint8, *shape))


@pytest.mark.parametrize(
    ("value", "dtype", "advice"),
    [
        (2, torch.uint8, "Pick one class: target == 1"),
        (-1, torch.int16, "Mask elements without a label: mask=target >= 0"),
        (-100, torch.int64, "Mask elements without a label"),
        (-1, torch.float32, "Mask elements without a label"),
        (1.5, torch.float32, "got 1.5"),
        (float("inf"), torch.float32, "got inf"),
    ],
)
@pytest.mark.parametrize("op", OPS)
def test_other_values_are_refused_too(op, value, dtype, advice):
    with pytest.raises(ValueError, match=advice):
        OPS[op](logits(2, 1, 96, 96), lesion(value, dtype))


@pytest.mark.parametrize("op", OPS)
def test_soft_targets_and_rounding_are_not(op):
    """Mixup, smoothed labels, interpolated masks: 1 rounded in a float, and -0."""
    x = logits(2, 1, 96, 96)
    soft = torch.rand(2, 1, 96, 96)
    soft.flatten()[:5] = torch.tensor([0.0, -0.0, 1.0, 1.0000001, -1e-7])
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert OPS[op](x, soft.to(dtype)).isfinite()
    assert OPS[op](x, soft > 0.5).isfinite()


@pytest.mark.parametrize("op", OPS)
def test_what_is_masked_may_hold_anything(op):
    x, target = logits(2, 1, 96, 96), lesion(255)
    mask = target == 0
    torch.testing.assert_close(OPS[op](x, target, mask=mask), OPS[op](x, target * 0, mask=mask))
    with pytest.raises(ValueError, match=REFUSED):
        OPS[op](x, target, mask=~mask)


@pytest.mark.parametrize("op", OPS)
def test_the_reference_refuses_it_and_float64(op):
    for x in (logits(2, 1, 96, 96), logits(2, 1, 96, 96).double()):
        with pytest.raises(ValueError, match=REFUSED):
            OPS[op](x, lesion(255), backend="reference")


def test_a_target_that_is_no_number_makes_the_loss_none():
    """The trainer names the task."""
    assert ops.dice_bce_loss(logits(2, 1, 96, 96), lesion(float("nan"), torch.float32)).isnan()
    target = lesion(float("nan"), torch.float32)
    target[1, 0, 5, 5] = 255
    with pytest.raises(ValueError, match="got 255"):
        ops.dice_bce_loss(logits(2, 1, 96, 96), target)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # from NumPy, in Triton's interpreter
@pytest.mark.parametrize("op", ["dice_bce", "focal", "bce", "tversky", "deep supervision"])
def test_a_gpu_says_it_by_a_loss_of_nan(op):
    """The host does not wait for the device to raise."""
    if backends.missing("triton"):
        pytest.skip(str(backends.missing("triton")))
    x = logits(1, 1, 16, 16)
    assert OPS[op](x, lesion(1, torch.uint8, 1, 1, 16, 16), backend="triton").isfinite()
    assert OPS[op](x, lesion(2, torch.uint8, 1, 1, 16, 16), backend="triton").isnan()
    assert OPS[op](x, lesion(-1, torch.int16, 1, 1, 16, 16), backend="triton").isnan()


@pytest.mark.parametrize("downsample", ["nearest", "area", "max"])
def test_a_coarse_head_does_not_hide_it(downsample):
    """One pixel of 255 in a window of 256 has a mean below 1."""
    head = logits(1, 1, 4, 4)
    target = torch.zeros(1, 1, 64, 64, dtype=torch.int16)
    target[..., 0, 0] = 255
    with pytest.raises(ValueError, match=REFUSED):
        ops.deep_supervision_loss([head], target, downsample=downsample)
    with pytest.raises(ValueError, match=REFUSED):
        ops.deep_supervision_loss([head], -target.clamp(max=1), downsample=downsample)


SOFTMAX = {
    "dice_ce": ops.dice_ce_loss,
    "cross_entropy": ops.cross_entropy,
    "tversky": lambda x, t: ops.tversky_loss(x, t, activation="softmax"),
    "float64": lambda x, t: ops.dice_ce_loss(x.double(), t),
}


@pytest.mark.parametrize("op", SOFTMAX)
@pytest.mark.parametrize("shape", [(2, 3, 40, 40), (64, 3, 2, 1)])
def test_one_hot_maps_of_255_are_refused(op, shape):
    x = logits(*shape)
    index = torch.zeros(shape[0], *shape[2:], dtype=torch.int64)
    index.flatten()[:3] = 1
    for dtype in (torch.uint8, torch.float32):
        hot = torch.nn.functional.one_hot(index, 3).movedim(-1, 1).to(dtype).contiguous()
        assert SOFTMAX[op](x, hot).isfinite()
        hot[:, 1] *= 255
        with pytest.raises(ValueError, match=REFUSED):
            SOFTMAX[op](x, hot)


FACES = {
    **{f"monai.{name}": getattr(monai, name)(sigmoid=True) for name in ("DiceLoss", "DiceCELoss", "DiceFocalLoss")},
    **{f"monai.{name}": getattr(monai, name)(sigmoid=True) for name in ("GeneralizedDiceLoss", "TverskyLoss")},
    "monai.DiceLoss of probabilities": lambda x, t: monai.DiceLoss()(x.sigmoid(), t),
    "monai.FocalLoss": monai.FocalLoss(),
    "monai.FocalLoss none": lambda x, t: monai.FocalLoss(reduction="none")(x, t).sum(),
    **{f"smp.{name}": getattr(smp, name)("binary") for name in ("DiceLoss", "JaccardLoss", "FocalLoss")},
    **{f"smp.{name} many": getattr(smp, name)("multilabel") for name in ("DiceLoss", "JaccardLoss", "FocalLoss")},
    "smp.SoftBCEWithLogitsLoss": smp.SoftBCEWithLogitsLoss(),
    "smp.SoftBCEWithLogitsLoss none": lambda x, t: smp.SoftBCEWithLogitsLoss(reduction="none")(x, t).sum(),
    "nnunet.SoftDiceLoss": nnunet.SoftDiceLoss(apply_nonlin=torch.sigmoid),
    "nnunet.SoftDiceLoss of probabilities": lambda x, t: nnunet.SoftDiceLoss()(x.sigmoid(), t),
    "nnunet.DC_and_BCE_loss": nnunet.DC_and_BCE_loss({}, {}),
    "DiceBCELoss": losses.DiceBCELoss(),
    "FocalLoss": losses.FocalLoss(),
    "BCEWithLogitsLoss": losses.BCEWithLogitsLoss(),
    "TverskyLoss": losses.TverskyLoss(),
    "DeepSupervisionLoss": lambda x, t: losses.DeepSupervisionLoss()([x], t),
}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("face", FACES)
def test_every_face_refuses_it(face, dtype):
    x = logits(2, 1, 48, 48)
    assert FACES[face](x, lesion(1, dtype, 2, 1, 48, 48)).isfinite()
    with pytest.raises(ValueError, match=REFUSED):
        FACES[face](x, lesion(255, dtype, 2, 1, 48, 48))


CLASSES = {
    "dice_ce": ops.dice_ce_loss,
    "cross_entropy": ops.cross_entropy,
    "focal": lambda x, t: ops.focal_loss(x, t, alpha=None, activation="softmax"),
    "tversky": lambda x, t: ops.tversky_loss(x, t, activation="softmax"),
    "deep supervision": lambda x, t: ops.deep_supervision_loss([x], t[:, 0], activation="softmax"),
    "area": lambda x, t: ops.deep_supervision_loss(
        [x[..., ::8, ::8]], t[:, 0], activation="softmax", downsample="area"
    ),
    "max": lambda x, t: ops.deep_supervision_loss([x[..., ::8, ::8]], t[:, 0], activation="softmax", downsample="max"),
    "monai.DiceCELoss": monai.DiceCELoss(softmax=True, to_onehot_y=True),
    "monai.FocalLoss": monai.FocalLoss(use_softmax=True, to_onehot_y=True),
    "monai.FocalLoss none": monai.FocalLoss(to_onehot_y=True, reduction="none"),
    "smp.DiceLoss": lambda x, t: smp.DiceLoss("multiclass")(x, t[:, 0]),
    "smp.FocalLoss": lambda x, t: smp.FocalLoss("multiclass")(x, t[:, 0]),
    "smp.FocalLoss normalized": lambda x, t: smp.FocalLoss("multiclass", normalized=True)(x, t[:, 0]),
    "nnunet.DC_and_CE_loss": nnunet.DC_and_CE_loss({}, {}),
    "nnunet.SoftDiceLoss of probabilities": lambda x, t: nnunet.SoftDiceLoss()(x.softmax(1), t),
}


@pytest.mark.parametrize("number", [3, 255, -1])
@pytest.mark.parametrize("loss", CLASSES)
def test_class_numbers_without_a_channel_are_refused_by_every_class_loss(loss, number):
    target = torch.zeros(2, 1, 48, 48, dtype=torch.int64)
    target[0, 0, 1, 1] = number
    with pytest.raises(ValueError, match=r"`target`.*0 to 2"):
        CLASSES[loss](logits(2, 3, 48, 48), target)
