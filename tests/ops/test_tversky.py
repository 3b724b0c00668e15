"""`ops.tversky_loss`: MONAI's Tversky loss, the focal exponent, weights, policies for empty targets."""

from __future__ import annotations

import pytest
import torch
from helpers.asserts import loss_and_gradient
from helpers.inputs import segmentation
from helpers.op_backends import BACKENDS, dirty_memory, needs_triton
from torch.nn import functional as F

from fastmtl import ops

pytestmark = dirty_memory


@needs_triton
@pytest.mark.parametrize("C", [3, 33])
@pytest.mark.parametrize("wrong", [-1, 33, 127])
def test_an_invalid_class_number_is_nan_on_a_gpu(C, wrong):
    """Raising would wait for the device; a finite loss would hide the number."""
    x, t = torch.randn(2, C, 6), torch.zeros(2, 6, dtype=torch.int64)
    t[1, 3] = wrong
    for background in (True, False):
        options = {"activation": "softmax", "include_background": background, "reduction": "none"}
        loss, gradient = loss_and_gradient(lambda x: ops.tversky_loss(x, t, backend="triton", **options), x)
        assert loss[0].isfinite().all()
        assert loss[1].isnan().all()
        assert gradient[1].isnan().all()
    sums = ops.overlap_sums(x, t, activation="softmax", backend="triton")
    assert sums.prediction[1].isnan().all()
    assert sums.prediction[0].isfinite().all()


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_tversky_is_monais(activation):
    monai = pytest.importorskip("monai.losses", reason="MONAI is not installed")
    x, _ = segmentation((2, 3, 10, 11), torch.float64)
    y = torch.randint(0, 3, (2, 10, 11))
    t = F.one_hot(y, 3).movedim(-1, 1).double()
    for options in (
        {},
        {"alpha": 0.3, "beta": 0.7},
        {"batch": True, "reduction": "sum"},
        {"include_background": False},
    ):
        expected = monai.TverskyLoss(**{activation: True}, **options)(x, t)
        torch.testing.assert_close(ops.tversky_loss(x, t, activation=activation, **options), expected)
        if activation == "softmax":
            torch.testing.assert_close(ops.tversky_loss(x, y, activation=activation, **options), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tversky_weights_reductions_and_the_focal_exponent(backend):
    x, t = segmentation((2, 3, 10, 11))
    options = {"alpha": 0.3, "beta": 0.7, "backend": backend}
    plain = ops.tversky_loss(x, t, reduction="none", **options)
    assert plain.shape == (2, 3)
    assert ops.tversky_loss(x, t, reduction="none", batch=True, **options).shape == (3,)
    assert ops.tversky_loss(x, t, reduction="none", include_background=False, **options).shape == (2, 2)
    weight = torch.rand(3)
    focal = ops.tversky_loss(x, t, gamma=0.75, weight=weight, **options)
    torch.testing.assert_close(focal, (plain**0.75 * weight).mean())
    total = ops.tversky_loss(x, t, gamma=2.0, reduction="sum", **options)
    torch.testing.assert_close(total, (plain**2).sum())
    dice = ops.dice_bce_loss(x, t, bce_weight=0.0, dice_weight=1.0, smooth_nr=2e-5, smooth_dr=2e-5, backend=backend)
    torch.testing.assert_close(ops.tversky_loss(x, t, backend=backend), dice)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gamma", [0.5, 1.0, 1.5])
def test_tversky_of_a_perfect_prediction_has_a_gradient(backend, gamma):
    t = torch.tensor([1, 0, 1, 0], dtype=torch.uint8).view(1, 1, 2, 2)
    for x in (torch.where(t == 1, 100.0, -100.0), torch.where(t == 1, float("inf"), -float("inf"))):
        value, gradient = loss_and_gradient(lambda x: ops.tversky_loss(x, t, gamma=gamma, backend=backend), x)
        assert value.item() == 0
        assert gradient.isfinite().all()
    # Smoothing can put the index above 1: a power of a negative number is NaN.
    value, gradient = loss_and_gradient(lambda x: ops.tversky_loss(x, t, gamma=gamma, smooth_nr=1.0), x)
    assert value.item() == pytest.approx(0 if gamma != 1 else 1 - 3 / 2.00001)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_tversky_empty_policies_and_masks(backend):
    x, t = torch.full((2, 2, 3, 3), -float("inf")), torch.zeros(2, 2, 3, 3, dtype=torch.bool)
    x[:, 1], t[:, 1] = 30.0, True

    def loss(**options):
        return loss_and_gradient(lambda x: ops.tversky_loss(x, t, backend=backend, **options), x)

    assert loss(empty="one")[0].item() == pytest.approx(0, abs=1e-6)
    assert loss(empty="zero")[0].item() == pytest.approx(0.5, abs=1e-6)
    assert loss(empty="skip", reduction="none")[0][:, 0].tolist() == [0, 0]
    valid = torch.tensor([[True, False], [False, True]])
    assert loss(empty="zero", mask=valid)[0].item() == pytest.approx(0.5, abs=1e-6)
    value, gradient = loss(mask=torch.zeros(2, dtype=torch.bool))
    assert value.item() == 0
    assert (gradient == 0).all()
