"""`ops.dice_ce_loss`: every backend against the definition, and the definition against MONAI and torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.asserts import assert_bit_equal, assert_within_budget, loss_and_gradient
from helpers.classes import CLASS_DTYPES, PIXEL_MASKS, class_map, pixel_mask
from helpers.inputs import laid_out, layout
from helpers.op_backends import BACKENDS, KERNELS, dirty_memory, needs_cpp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastmtl import losses, ops
from fastmtl.reference.dice_ce import dice_ce_loss as reference

pytestmark = dirty_memory
SHAPES = [
    (2, 3, 16, 16),
    (1, 2, 7, 5),
    (2, 6, 3, 4, 5),
    (3, 2, 33, 31),
    (2, 5),
    (1, 9, 700),
    (2, 40, 9, 5),
    (1, 128, 5),
]
EVERYTHING = {"squared_pred": True, "jaccard": True, "label_smoothing": 0.1, "include_background": False}


def truth(x, t, **options):
    doubled = {k: v.double() if torch.is_tensor(v) and k != "mask" else v for k, v in options.items()}
    return loss_and_gradient(lambda x: ops.dice_ce_loss(x, t, backend="reference", **doubled), x.double())


def check(backend, x, t, tolerance=3e-6, **options):
    """Loss and gradient of a backend against float64 on the same numbers."""
    value, gradient = loss_and_gradient(lambda x: ops.dice_ce_loss(x, t, backend=backend, **options), x)
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
    x, t = class_map(shape)
    weight = torch.rand(shape[1])
    settings: tuple[dict[str, Any], ...] = (
        {},
        {"reduction": "none", "weight": weight, "squared_pred": True, "ce_weight": 0.2, "dice_weight": 2.0},
        {"reduction": "sum", "weight": weight, "include_background": False, "label_smoothing": 0.3},
        {"batch": True, "jaccard": True, "empty": "skip"},
        EVERYTHING | {"weight": weight, "batch": True},
        {"dice_weight": 0.0, "label_smoothing": 1.0},
    )
    number = SHAPES.index(shape)  # the interpreter is slow: all settings once, on other shapes two of them
    few = backend == "triton" and number > 0
    for options in (settings[number % 6], settings[(number + 3) % 6]) if few else settings:
        check(backend, x, t, **options)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("soft_dtype", [torch.float32, torch.float16, torch.uint8], ids=str)
def test_probabilities_as_target(backend, soft_dtype):
    x, t = class_map((2, 4, 9, 7))
    t = torch.randn(x.shape).softmax(1).to(soft_dtype) if soft_dtype.is_floating_point else F.one_hot(t.long(), 4)
    t = t if soft_dtype.is_floating_point else t.movedim(-1, 1).to(soft_dtype)
    check(backend, x, t, weight=torch.rand(4))
    check(backend, x, t, mask=pixel_mask("pixel", x.shape), reduction="none", **EVERYTHING)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("target_dtype", CLASS_DTYPES, ids=str)
def test_half_logits_and_every_target_dtype(backend, dtype, target_dtype):
    ignored = 255 if target_dtype == torch.uint8 else -100
    x, t = class_map((2, 3, 17, 19), dtype, target_dtype, ignored=ignored)
    check(backend, x, t, ignore_index=ignored)
    check(backend, x[:, :2], (t == 1).unsqueeze(1))


@pytest.mark.parametrize("backend", KERNELS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_odd_shapes_layouts_dtypes_and_masks(backend, data):
    draw = data.draw
    spatial = draw(st.lists(st.integers(1, 15), min_size=0, max_size=3))
    shape = (draw(st.integers(1, 3)), draw(st.sampled_from([2, 3, 5, 8, 17])), *spatial)
    x, t = class_map(shape, draw(st.sampled_from([torch.float32, torch.bfloat16])), draw(st.sampled_from(CLASS_DTYPES)))
    batch = draw(st.booleans())
    check(
        backend,
        laid_out(draw, x),
        laid_out(draw, t if draw(st.booleans()) else t.unsqueeze(1)),
        mask=laid_out(draw, pixel_mask(draw(st.sampled_from(PIXEL_MASKS)), shape)),
        ignore_index=draw(st.sampled_from([-100, 1])),
        batch=batch,
        squared_pred=draw(st.booleans()),
        jaccard=draw(st.booleans()),
        include_background=draw(st.booleans()),
        label_smoothing=draw(st.sampled_from([0.0, 0.2])),
        empty=draw(st.sampled_from(["one", "zero", "skip"])),
        reduction="mean" if batch else draw(st.sampled_from(["none", "mean", "sum"])),
        weight=draw(st.sampled_from([None, torch.rand(shape[1])])),
    )


def naive(x, t):
    """The plain formula as people write it, in the dtype of the inputs."""
    p, one_hot = x.softmax(1).flatten(2), F.one_hot(t.long(), x.shape[1]).movedim(-1, 1).to(x.dtype).flatten(2)
    dice = 1 - (2 * (p * one_hot).sum(2) + 1e-5) / (p.sum(2) + one_hot.sum(2) + 1e-5)
    return 0.5 * F.cross_entropy(x, t.long()) + 0.5 * dice.mean()


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_error_is_within_the_naive_formulas(backend, dtype):
    for seed in range(2):
        x, t = class_map((2, 4, 48, 48), dtype, seed=seed)
        true_value, true_gradient = truth(x, t)
        value, gradient = loss_and_gradient(lambda x, t=t: ops.dice_ce_loss(x, t, backend=backend), x)
        naive_value, naive_gradient = loss_and_gradient(lambda x, t=t: naive(x, t), x)
        assert_within_budget(value, naive_value, true_value, dtype, "loss")
        scale = true_gradient.abs().max()
        assert_within_budget(gradient / scale, naive_gradient / scale, true_gradient / scale, dtype, "gradient")


@needs_cpp
@pytest.mark.parametrize("sums", [False, True])
def test_backward_holds_the_copy_of_a_target_with_no_pixel_stride(sums):
    """The copy and the gradient have as many bytes: freed too early, one would lie on the other."""
    x, _ = class_map((2, 2, 8, 8), torch.float32)
    sampled = class_map((2, 2, 16, 16), torch.float32, torch.int64)[1][..., ::2, ::2]

    def run(target):
        def loss(x):
            if sums:
                return ops.overlap_sums(x, target, activation="softmax").intersection.sum()
            return ops.dice_ce_loss(x, target)

        return loss_and_gradient(loss, x)

    assert_bit_equal([run(sampled), run(sampled.contiguous())])


def test_planes_of_several_chunks_and_a_mixed_layout():
    x, t = class_map((2, 3, 150, 130))
    check("cpp", x, t)
    check("cpp", layout(x, "channels_last"), t, mask=pixel_mask("pixel", x.shape))
    _, gradient = loss_and_gradient(lambda x: ops.dice_ce_loss(x, t), layout(x, "channels_last"))
    assert gradient.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", KERNELS)
def test_bit_equal_over_repeats_and_thread_counts(backend, two_threads):
    x, t = class_map((2, 3, 20, 20) if backend == "triton" else (3, 5, 120, 121))
    results = []
    for threads in (2, 1, 2, 7):
        torch.set_num_threads(threads)
        results.append(loss_and_gradient(lambda x: ops.dice_ce_loss(x, t, backend=backend), layout(x, "misaligned")))
        results.append(loss_and_gradient(lambda x: ops.dice_ce_loss(x, t, backend=backend), x))
    assert_bit_equal(results)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(3, 4, 21, 19), (2, 40, 7, 3)], ids=str)
def test_counts_of_the_hard_prediction(backend, shape):
    x, t = class_map(shape, ignored=200)
    x[0, 1, 0, :2], x[-1, 0, 0, 1] = float("inf"), float("nan")
    x[0, :, 1, 1] = 0.5  # equal: the first is the prediction
    t[0, 0, 0] = 200
    valid = pixel_mask("pixel", shape) | torch.arange(shape[0]).eq(0).view(-1, 1, 1)
    valid[-1, 0, 1] = False
    loss, counts = ops.dice_ce_loss(
        x, t, mask=valid, ignore_index=200, reduction="none", return_counts=True, backend=backend
    )
    used = valid & (t != 200)
    for c in range(shape[1]):
        predicted, true = (x.argmax(1) == c) & used, (t == c) & used
        for found, expected in zip(counts, (predicted & true, predicted & ~true, ~predicted & true), strict=False):
            assert found.dtype == torch.int64
            assert found[:, c].tolist() == expected.flatten(1).sum(1).tolist()
    assert counts.non_finite.tolist() == [int(used[0, 0, 1]), *(0 for _ in shape[0] * [0])][: shape[0]]
    assert_bit_equal(
        [(loss,), (ops.dice_ce_loss(x, t, mask=valid, ignore_index=200, reduction="none", backend=backend),)]
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"squared_pred": True},
        {"jaccard": True},
        {"batch": True},
        {"include_background": False, "weight": torch.rand(4, dtype=torch.float64)},
        {"weight": torch.rand(4, dtype=torch.float64), "label_smoothing": 0.2},
    ],
    ids=str,
)
def test_parity_with_monai(options):
    monai = pytest.importorskip("monai.losses", reason="MONAI is not installed")
    x, t = class_map((2, 4, 12, 11), torch.float64)
    t[0][t[0] == 1] = 0
    theirs = monai.DiceCELoss(softmax=True, to_onehot_y=True, lambda_dice=0.7, lambda_ce=0.3, **options)
    expected = loss_and_gradient(lambda x: theirs(x, t.unsqueeze(1)), x)
    ours = loss_and_gradient(lambda x: ops.dice_ce_loss(x, t, ce_weight=0.3, dice_weight=0.7, **options), x)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)  # MONAI's squared sums lose some digits


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, EVERYTHING | {"batch": True}], ids=str)
def test_gradients_by_finite_differences(options):
    x, t = class_map((2, 3, 3), torch.float64, ignored=7)
    x, options = x.requires_grad_(), {"ignore_index": 7, "weight": torch.rand(3, dtype=torch.float64)} | options
    assert torch.autograd.gradcheck(lambda x: reference(x, t, **options), x)
    assert torch.autograd.gradcheck(lambda x: ops.dice_ce_loss(x, t, **options), x)
    assert torch.autograd.gradgradcheck(lambda x: ops.dice_ce_loss(x, t, **options), x)


def test_module_is_the_op():
    x, t = class_map((2, 3, 8, 8))
    loss = losses.DiceCELoss(ce_weight=0.6, dice_weight=0.4, weight=torch.rand(3), empty="skip")
    expected = ops.dice_ce_loss(x, t, ce_weight=0.6, dice_weight=0.4, weight=loss.weight, empty="skip")
    assert_bit_equal([(loss(x, t),), (expected,)])
    assert not list(loss.parameters())
    assert "empty='skip'" in repr(loss)
    with pytest.raises(TypeError, match="`smooth` is no setting"):
        losses.DiceCELoss(smooth=1.0)
