"""`losses.monai` on inputs of every kind: dtypes, soft and ignored channels, gradients of targets, MetaTensors."""

import pytest
import torch
from helpers.inputs import generator
from helpers.parity import assert_same, outcome

from fastmtl.losses import monai as ours

theirs = pytest.importorskip("monai.losses", reason="MONAI comes with the extra [bench]")
from helpers.monai_cases import NAMES, arguments_of, tolerance_of  # noqa: E402
from monai.data.meta_tensor import MetaTensor  # noqa: E402


@pytest.mark.parametrize("name", NAMES)
def test_float32(name):
    arguments, logits, target = arguments_of(name, {"shape": "3d"})
    assert_same(lambda: getattr(ours, name)(**arguments), lambda: getattr(theirs, name)(**arguments), logits.float(),
                target.float(), tolerance=1e-5)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("name", NAMES)
def test_integer_targets_mean_what_floats_do(name, dtype):
    arguments, logits, target = arguments_of(name, {})
    arguments |= {"squared_pred": True, "soft_label": True} if name == "DiceLoss" else {}
    assert_same(lambda: getattr(ours, name)(**arguments), lambda: getattr(theirs, name)(**arguments), logits,
                target.to(dtype), their_target=target, tolerance=tolerance_of(name))  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_sums_do_not_overflow(name):
    """A plane of 2^18 ones is infinity in float16; MONAI's sums of it are NaN."""
    logits = torch.full((1, 1, 512, 512), 8.0, dtype=torch.float16)
    arguments = {} if name == "FocalLoss" else {"sigmoid": True}
    loss, gradient = outcome(lambda: getattr(ours, name)(**arguments), logits, torch.ones(logits.shape).bool())[0]
    assert loss.dtype == torch.float32
    assert 0 <= loss < 1e-3
    assert gradient.isfinite().all()


def test_squared_float32_follows_monai_in_float64():
    """MONAI's norms of float32 cancel: 0.3% off on a small object, where float64 and fastmtl agree."""
    logits = torch.randn(1, 1, 256, 256, generator=generator(0)) - 3
    target = torch.zeros_like(logits)
    target[..., :2, :2] = 1
    truth = theirs.DiceLoss(sigmoid=True, squared_pred=True)(logits.double(), target.double())
    found = ours.DiceLoss(sigmoid=True, squared_pred=True)(logits, target)
    assert abs(found.item() - truth.item()) < 1e-5 * truth.item()


@pytest.mark.parametrize("name", ["DiceLoss", "FocalLoss"])
def test_soft_channel_is_ignored_in_part(name):
    """Where the ignored class is a soft channel, the mask is 1 minus it."""
    arguments, logits, target = arguments_of(name, {"target": "soft", "ignore_index": 1, "reduction": "mean"})
    assert_same(lambda: getattr(ours, name)(**arguments), lambda: getattr(theirs, name)(**arguments), logits, target,
                tolerance=tolerance_of(name))  # fmt: skip


@pytest.mark.parametrize("name", ["DiceLoss", "TverskyLoss", "DiceCELoss", "FocalLoss"])
def test_gradient_reaches_a_target_that_asks_for_it(name):
    arguments, logits, target = arguments_of(name, {"target": "soft"})
    gradients = []
    for library in (ours, theirs):
        leaf = target.clone().requires_grad_()
        getattr(library, name)(**arguments)(logits, leaf).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=tolerance_of(name), atol=tolerance_of(name))


def test_root_of_nothing_left_has_a_gradient():
    """MONAI's is NaN where 1 - p is 0 and gamma is below 1: one channel's softmax, or a very sure one."""
    logits = torch.tensor([[[[200.0]], [[-200.0]]]], requires_grad=True)
    ours.FocalLoss(gamma=0.5, use_softmax=True, to_onehot_y=True)(logits, torch.zeros(1, 1, 1, 1)).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float32])
@pytest.mark.parametrize("use_softmax", [False, True])
def test_focal_class_numbers_of_any_dtype(use_softmax, dtype):
    _, logits, target = arguments_of("FocalLoss", {"to_onehot_y": True})
    loss = ours.FocalLoss(to_onehot_y=True, use_softmax=use_softmax)
    target = target.clamp(max=1).to(dtype)
    torch.testing.assert_close(loss(logits, target), loss(logits, target.long()), rtol=0, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_metatensors(smoothing):
    """What a MONAI loader hands out."""
    arguments, logits, target = arguments_of("DiceCELoss", {"to_onehot_y": True, "label_smoothing": smoothing})
    logits = MetaTensor(logits)
    assert_same(lambda: ours.DiceCELoss(**arguments), lambda: theirs.DiceCELoss(**arguments), logits,
                MetaTensor(target.float()))  # fmt: skip
