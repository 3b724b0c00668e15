"""`ops.dice_bce_loss`: every backend against the definition, and the definition against MONAI and torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.asserts import assert_bit_equal, assert_within_budget, loss_and_gradient
from helpers.inputs import MASKS, TARGET_DTYPES, laid_out, layout, mask, segmentation
from helpers.op_backends import BACKENDS, KERNELS, dirty_memory, needs_cpp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastmtl import losses, ops
from fastmtl.reference.dice_bce import dice_bce_loss as reference

pytestmark = dirty_memory
SHAPES = [(2, 3, 16, 16), (1, 1, 7, 5), (2, 2, 3, 4, 5), (3, 1, 33, 31), (2, 5), (1, 2, 2500)]


def naive(x, t, dtype, mask=None, **options):
    """The plain formula as people write it, in the dtype of the inputs."""
    options = {k: v.to(dtype) if torch.is_tensor(v) else v for k, v in options.items()}
    p, t = x.sigmoid().flatten(2), t.to(dtype).flatten(2)
    bce = F.binary_cross_entropy_with_logits(x.flatten(2), t)
    dice = 1 - (2 * (p * t).sum(2) + 1e-5) / (p.sum(2) + t.sum(2) + 1e-5)
    return 0.5 * bce + 0.5 * dice.mean()


def truth(x, t, **options):
    doubled = {k: v.double() if torch.is_tensor(v) and k != "mask" else v for k, v in options.items()}
    return loss_and_gradient(lambda x: ops.dice_bce_loss(x, t, backend="reference", **doubled), x.double())


def check(backend, x, t, tolerance=2e-6, **options):
    """Loss and gradient of a backend against float64 on the same numbers."""
    value, gradient = loss_and_gradient(lambda x: ops.dice_bce_loss(x, t, backend=backend, **options), x)
    true_value, true_gradient = truth(x, t, **options)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), true_value, rtol=tolerance, atol=tolerance)
    step = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(x.dtype, tolerance)
    # Half gradients below the smallest normal number lose digits, which no kernel can help.
    small = {torch.float16: 6e-8}.get(x.dtype, tolerance * true_gradient.abs().max().item() + 1e-30)
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=step, atol=small)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_definition(backend, shape):
    x, t = segmentation(shape)
    for options in (
        {},
        {"reduction": "none", "squared_pred": True, "batch": True},
        {"reduction": "sum", "jaccard": True, "weight": torch.rand(shape[1]), "pos_weight": torch.rand(shape[1]) * 3},
        {
            "jaccard": True,
            "squared_pred": True,
            "batch": True,
            "bce_weight": 0.2,
            "dice_weight": 2.0,
            "pos_weight": 2.5,
        },
    ):
        check(backend, x, t, **options)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_logits_are_read_as_they_are(backend, dtype):
    x, t = segmentation((2, 2, 17, 19), dtype)
    check(backend, x, t)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("target_dtype", TARGET_DTYPES, ids=str)
def test_every_target_dtype(backend, target_dtype):
    x, t = segmentation((2, 2, 13, 11), target_dtype=target_dtype)
    check(backend, x, t)


@pytest.mark.parametrize("backend", KERNELS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_odd_shapes_layouts_dtypes_and_masks(backend, data):
    draw = data.draw
    shape = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, 4)),
        *draw(st.lists(st.integers(1, 19), min_size=1, max_size=3)),
    )
    x, t = segmentation(
        shape, draw(st.sampled_from([torch.float32, torch.bfloat16])), draw(st.sampled_from(TARGET_DTYPES))
    )
    x, t = laid_out(draw, x), laid_out(draw, t)
    check(
        backend,
        x,
        t,
        mask=laid_out(draw, mask(draw(st.sampled_from(MASKS)), shape)),
        batch=draw(st.booleans()),
        squared_pred=draw(st.booleans()),
        jaccard=draw(st.booleans()),
        empty=draw(st.sampled_from(["one", "zero", "skip"])),
        reduction=draw(st.sampled_from(["none", "mean", "sum"])),
        weight=draw(st.sampled_from([None, torch.rand(shape[1])])),
        pos_weight=draw(st.sampled_from([None, torch.rand(shape[1]) * 3])),
    )


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_error_is_within_the_naive_formulas(backend, dtype):
    for seed in range(3):
        x, t = segmentation((2, 2, 64, 64), dtype, seed=seed)
        true_value, true_gradient = truth(x, t)
        value, gradient = loss_and_gradient(lambda x, t=t: ops.dice_bce_loss(x, t, backend=backend), x)
        naive_value, naive_gradient = loss_and_gradient(lambda x, t=t: naive(x, t, dtype), x)
        assert_within_budget(value, naive_value, true_value, dtype, "loss")
        scale = true_gradient.abs().max()
        assert_within_budget(gradient / scale, naive_gradient / scale, true_gradient / scale, dtype, "gradient")


@needs_cpp
def test_planes_of_several_chunks_and_a_mixed_layout():
    x, t = segmentation((2, 3, 150, 130))
    check("cpp", x, t)
    check("cpp", layout(x, "channels_last"), t, mask=mask("pixel", x.shape))
    assert ops.dice_bce_loss(layout(x, "channels_last"), t, reduction="none").shape == (2, 3)


def test_gradient_keeps_channels_last():
    x, t = segmentation((2, 3, 8, 8))
    _, gradient = loss_and_gradient(lambda x: ops.dice_bce_loss(x, t), layout(x, "channels_last"))
    assert gradient.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("extreme", [20.0, 100.0, float("inf")])
def test_extreme_logits(backend, extreme):
    x = torch.tensor([extreme, -extreme, extreme, -extreme]).view(1, 1, 2, 2)
    right = torch.tensor([1, 0, 1, 0], dtype=torch.uint8).view(1, 1, 2, 2)
    value, gradient = loss_and_gradient(lambda x: ops.dice_bce_loss(x, right, backend=backend), x)
    assert 0 <= value.item() < 1e-8 + 0.5e-8 * (extreme < 21)
    assert gradient.isfinite().all()
    value, gradient = loss_and_gradient(lambda x: ops.dice_bce_loss(x, 1 - right, backend=backend), x)
    expected = 0.5 * extreme + 0.5 * (1 - 1e-5 / (4 + 1e-5))
    assert value.item() == pytest.approx(expected)
    torch.testing.assert_close(gradient.sign(), x.sign())
    value, _ = loss_and_gradient(lambda x: ops.dice_bce_loss(x, right * 0.5, backend=backend, dice_weight=1.0), x)
    assert not value.isnan()


@pytest.mark.parametrize("backend", KERNELS)
def test_gradient_survives_a_confident_wrong_logit(backend):
    """p (1 - p) from 1 - p rounded in float32 would be 0 here."""
    x, t = torch.full((1, 1, 4, 4), 25.0), torch.ones(1, 1, 4, 4, dtype=torch.uint8)
    _, gradient = loss_and_gradient(lambda x: ops.dice_bce_loss(x, t, backend=backend), x)
    _, expected = truth(x, t)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=0)
    assert (gradient < 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_policies(backend):
    x = torch.full((1, 2, 3, 3), -float("inf"))
    x[0, 1, 0, 0] = 30.0
    t = torch.zeros(1, 2, 3, 3, dtype=torch.bool)
    t[0, 1, 0, 0] = True

    def dice(**options):
        return ops.dice_bce_loss(x, t, bce_weight=0.0, dice_weight=1.0, backend=backend, **options)

    assert dice(empty="one").item() == pytest.approx(0.0, abs=1e-6)
    assert dice(empty="zero").item() == pytest.approx(0.5, abs=1e-6)
    assert dice(empty="zero", smooth_nr=0.0, smooth_dr=0.0, reduction="none")[0, 0].item() == 1.0
    assert dice(empty="skip").item() == pytest.approx(0.0, abs=1e-6)
    nothing = ops.dice_bce_loss(x[:, :1], t[:, :1], bce_weight=0.0, empty="skip", smooth_dr=0.0, backend=backend)
    assert nothing.item() == 0.0
    smoothed = ops.dice_bce_loss(torch.zeros(1, 1, 3, 3), t[:, :1], bce_weight=0.0, dice_weight=1.0, backend=backend)
    assert smoothed.item() == pytest.approx(1 - 1e-5 / (4.5 + 1e-5), rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["sample", "segment", "full"])
def test_masked_elements_take_part_in_nothing(backend, kind):
    shape = (3, 2, 9, 8)
    x, t = segmentation(shape, target_dtype=torch.float32)
    valid = mask(kind, shape, seed=3)
    full = valid.view(*valid.shape, *(1,) * (4 - valid.dim())).expand(shape)
    dirty_x, dirty_t = torch.where(full, x, float("nan")), torch.where(full, t, float("nan"))
    for reduction in ("mean", "sum", "none"):
        clean = loss_and_gradient(
            lambda x: ops.dice_bce_loss(x, t, mask=valid, reduction=reduction, backend=backend), x
        )
        dirty = loss_and_gradient(
            lambda x: ops.dice_bce_loss(x, dirty_t, mask=valid, reduction=reduction, backend=backend), dirty_x
        )
        assert_bit_equal([clean, dirty])
        assert (clean[1][~full] == 0).all()
        assert clean[0].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_masked_is_zero(backend, reduction):
    x = torch.full((2, 2, 5, 5), float("nan"))
    off = torch.zeros(2, dtype=torch.bool)
    value, gradient = loss_and_gradient(
        lambda x: ops.dice_bce_loss(x, torch.ones(2, 2, 5, 5), mask=off, reduction=reduction, backend=backend), x
    )
    assert (value == 0).all()
    assert (gradient == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_in_its_segment(backend):
    x, t = segmentation((2, 2, 6, 6))
    x[1, 0, 2, 2] = float("nan")
    value, gradient = loss_and_gradient(lambda x: ops.dice_bce_loss(x, t, reduction="none", backend=backend), x)
    assert value.isnan().tolist() == [[False, False], [True, False]]
    assert gradient.isnan().flatten(2).any(2).tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize("backend", KERNELS)
def test_bit_equal_over_repeats_and_thread_counts(backend, two_threads):
    x, t = segmentation((2, 2, 40, 40) if backend == "triton" else (3, 2, 200, 201))
    results = []
    for threads in (2, 1, 2, 7):
        torch.set_num_threads(threads)
        results.append(loss_and_gradient(lambda x: ops.dice_bce_loss(x, t, backend=backend), layout(x, "misaligned")))
        results.append(loss_and_gradient(lambda x: ops.dice_bce_loss(x, t, backend=backend), x))
    assert_bit_equal(results)


def test_parity_with_monai_and_torch():
    monai = pytest.importorskip("monai.losses", reason="MONAI is not installed")
    x, t = segmentation((2, 3, 20, 21), torch.float64, torch.float64)
    t = (t < 0.3).double()
    t[0, 1] = 0
    for options in ({}, {"squared_pred": True}, {"jaccard": True}, {"batch": True}, {"weight": torch.rand(3)}):
        dice = monai.DiceLoss(sigmoid=True, **options)(x, t)
        expected = 0.3 * F.binary_cross_entropy_with_logits(x, t) + 0.7 * dice
        for backend in ("auto", "reference"):
            value = ops.dice_bce_loss(x, t, bce_weight=0.3, dice_weight=0.7, backend=backend, **options)
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)


def test_pos_weight_is_torchs():
    x, t = segmentation((2, 3, 8, 9), torch.float64, torch.float64)
    for weight in (torch.tensor(2.0), torch.rand(3), torch.rand(3, 1, 1), torch.rand(1, 3, 1, 1)):
        broadcast = weight.reshape(-1, 1, 1).double()
        expected = F.binary_cross_entropy_with_logits(x, t, pos_weight=broadcast)
        value = ops.dice_bce_loss(x, t, pos_weight=weight, bce_weight=1.0, dice_weight=0.0)
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    "options",
    [{}, {"reduction": "none", "mask": torch.tensor([[True, False], [True, True]])}, {"jaccard": True, "batch": True}],
    ids=["mean", "none", "batch jaccard"],
)
def test_gradients_by_finite_differences(options: dict[str, Any]):
    x, t = segmentation((2, 2, 2, 2), torch.float64, torch.float64)
    x.requires_grad_()
    full = options | {"mask": options["mask"].view(2, 2, 1, 1)} if "mask" in options else options
    assert torch.autograd.gradcheck(lambda x: reference(x, t, **full), x)
    assert torch.autograd.gradcheck(lambda x: ops.dice_bce_loss(x, t, **options), x)
    assert torch.autograd.gradcheck(lambda x: ops.dice_bce_loss(x, t, squared_pred=True, **options), x)
    assert torch.autograd.gradgradcheck(lambda x: ops.dice_bce_loss(x, t, **options), x)


def test_module_is_the_op():
    x, t = segmentation((2, 3, 8, 8))
    loss = losses.DiceBCELoss(bce_weight=0.6, dice_weight=0.4, weight=torch.rand(3), empty="skip")
    expected = ops.dice_bce_loss(x, t, bce_weight=0.6, dice_weight=0.4, weight=loss.weight, empty="skip")
    assert_bit_equal([(loss(x, t),), (expected,)])
    assert not list(loss.parameters())
    assert "empty='skip'" in repr(loss)
