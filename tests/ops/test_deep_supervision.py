"""`ops.deep_supervision_loss`: every backend against the definition, and the definition against torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.asserts import assert_bit_equal, assert_within_budget
from helpers.heads import HOW, pyramid, values_and_gradients
from helpers.inputs import MASKS, TARGET_DTYPES, laid_out, layout, mask
from helpers.op_backends import BACKENDS, KERNELS, dirty_memory, needs_cpp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastmtl import losses, ops
from fastmtl.reference.deep_supervision import sample

pytestmark = dirty_memory


def truth(heads, target, **options):
    doubled = {k: v.double() if torch.is_tensor(v) and k != "mask" else v for k, v in options.items()}
    heads = [x.double() for x in heads]
    return values_and_gradients(heads, lambda xs: ops.deep_supervision_loss(xs, target, backend="reference", **doubled))


def check(backend, heads, target, tolerance=2e-6, **options):
    found = values_and_gradients(heads, lambda xs: ops.deep_supervision_loss(xs, target, backend=backend, **options))
    step = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(heads[0].dtype, tolerance)
    exact = truth(heads, target, **options)
    torch.testing.assert_close(found[0].double(), exact[0], rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(found[1:], exact[1:], strict=True):
        small = {torch.float16: 6e-8}.get(heads[0].dtype, tolerance * theirs.abs().max().item() + 1e-30)
        torch.testing.assert_close(ours.double(), theirs, rtol=step, atol=small)


@pytest.mark.parametrize("size", [(40,), (24, 16), (8, 4, 12)], ids=str)
def test_the_mask_is_sampled_as_torch_samples_it(size):
    target = torch.rand(2, 3, *size)
    for stride in (1, 2, 4):
        small = torch.Size(full // stride for full in size)
        assert torch.equal(sample(target, None, small, "nearest")[0], F.interpolate(target, small, mode="nearest"))
        torch.testing.assert_close(sample(target, None, small, "area")[0], F.interpolate(target, small, mode="area"))
        pooled = getattr(F, f"max_pool{len(size)}d")(target, stride)
        assert torch.equal(sample(target, None, small, "max")[0], pooled)


@pytest.mark.parametrize("downsample", HOW)
def test_is_the_sum_of_dice_bce_losses(downsample):
    heads, target = pyramid((16, 24), (1, 2, 4, 4, 8), dtype=torch.float64)
    weights = [1.0, 0.5, 0.25, 2.0, 0.125]
    options: dict[str, Any] = {"batch": True, "jaccard": True, "pos_weight": 3.0}
    expected = 0.0
    for x, weight in zip(heads, weights, strict=True):
        small = sample(target, None, x.shape[2:], downsample, torch.float64)[0]
        expected += weight * ops.dice_bce_loss(x, small, bce_weight=0.3, dice_weight=0.7, **options)
    for given_weights in (weights, torch.tensor(weights)):
        found = ops.deep_supervision_loss(
            heads,
            target,
            weights=given_weights,
            downsample=downsample,
            pointwise_weight=0.3,
            dice_weight=0.7,
            **options,
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("downsample", HOW)
@pytest.mark.parametrize(
    ("size", "strides"),
    [((16, 8), (1, 2, 4, 8, 2)), ((9, 15), (3, 1)), ((4, 4, 8), (1, (1, 2, 2), (2, 4, 4))), ((40,), (1, 5))],
    ids=str,
)
def test_matches_the_definition(backend, downsample, size, strides):
    heads, target = pyramid(size, strides)
    check(backend, heads, target, downsample=downsample)
    options: dict[str, Any] = {
        "squared_pred": True,
        "batch": True,
        "reduction": "none",
        "pos_weight": torch.rand(2) * 3,
    }
    weights = torch.linspace(-0.5, 1.5, len(heads))
    check(backend, heads, target, downsample=downsample, weights=weights, empty="skip", **options)
    check(backend, heads, target, downsample=downsample, jaccard=True, mask=mask("full", target.shape))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("target_dtype", TARGET_DTYPES, ids=str)
def test_every_target_dtype_and_half_logits(backend, target_dtype):
    dtype = torch.bfloat16 if target_dtype == torch.bool else torch.float16
    heads, target = pyramid((8, 12), (1, 2, 4), dtype=dtype, target_dtype=target_dtype)
    check(backend, heads, target, downsample="area")


@pytest.mark.parametrize("backend", KERNELS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_odd_shapes_layouts_dtypes_and_masks(backend, data):
    draw = data.draw
    rank, most = (draw(st.integers(1, 3)), 4) if backend == "cpp" else (draw(st.integers(1, 2)), 1)  # or too slow
    coarse = [draw(st.integers(1, most)) for _ in range(rank)]
    size = tuple(6 * one for one in coarse)
    strides = draw(
        st.lists(st.tuples(*[st.sampled_from([1, 2, 3, 6])] * rank), min_size=1, max_size=4 if most > 1 else 2)
    )
    dtype, target_dtype = draw(st.sampled_from([torch.float32, torch.bfloat16])), draw(st.sampled_from(TARGET_DTYPES))
    heads, target = pyramid(size, strides, draw(st.integers(1, 3 if most > 1 else 2)), dtype, target_dtype)
    heads = [laid_out(draw, x) for x in heads]
    check(
        backend,
        heads,
        laid_out(draw, target),
        downsample=draw(st.sampled_from(HOW)),
        mask=laid_out(draw, mask(draw(st.sampled_from(MASKS)), target.shape)),
        batch=draw(st.booleans()),
        squared_pred=draw(st.booleans()),
        jaccard=draw(st.booleans()),
        empty=draw(st.sampled_from(["one", "zero", "skip"])),
        reduction=draw(st.sampled_from(["none", "mean"])),
        weights=draw(st.sampled_from([None, torch.rand(len(heads))])),
        pos_weight=draw(st.sampled_from([None, torch.rand(target.shape[1]) * 3])),
    )


def naive(heads, target, dtype):
    """The plain loop, in the dtype of the heads."""
    total = torch.zeros((), dtype=dtype)
    for x in heads:
        t = F.interpolate(target.to(dtype), x.shape[2:], mode="area").flatten(2)
        p = x.sigmoid().flatten(2)
        dice = 1 - (2 * (p * t).sum(2) + 1e-5) / (p.sum(2) + t.sum(2) + 1e-5)
        total = total + 0.5 * F.binary_cross_entropy_with_logits(x.flatten(2), t) + 0.5 * dice.mean()
    return total


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_error_is_within_the_naive_formulas(backend, dtype):
    heads, target = pyramid((48, 32), (1, 2, 4), dtype=dtype)
    exact = truth(heads, target, downsample="area")
    found = values_and_gradients(
        heads, lambda xs: ops.deep_supervision_loss(xs, target, downsample="area", backend=backend)
    )
    plain = values_and_gradients(heads, lambda xs: naive(xs, target, dtype))
    assert_within_budget(found[0], plain[0], exact[0], dtype, "loss")
    for ours, theirs, true in zip(found[1:], plain[1:], exact[1:], strict=True):
        scale = true.abs().max()
        assert_within_budget(ours / scale, theirs / scale, true / scale, dtype, "gradient")


@needs_cpp
@pytest.mark.parametrize("downsample", HOW)
def test_planes_of_several_chunks_and_windows_wider_than_a_buffer(downsample):
    heads, target = pyramid((72, 264), (1, 2, (3, 4), (36, 264)))
    check("cpp", heads, target, downsample=downsample, mask=mask("pixel", target.shape))
    heads, target = pyramid((2, 2500), (1, (1, 1250), 2, (2, 2500)), target_dtype=torch.float32)
    check("cpp", heads, target, downsample=downsample)


def test_gradients_keep_channels_last():
    heads, target = pyramid((8, 8), (1, 2))
    heads[1] = layout(heads[1], "channels_last")
    _, first, second = values_and_gradients(heads, lambda xs: ops.deep_supervision_loss(xs, target))
    assert first.is_contiguous()
    assert second.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", BACKENDS)
def test_max_keeps_a_lesion_of_one_pixel_alive(backend):
    """nnU-Net issue 1226: what nearest down-sampling deletes, the coarse heads learn to call background."""
    target = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    target[0, 0, 5, 7] = 1
    coarse = [torch.zeros(1, 1, 4, 4)]
    pulls = {}
    for how in HOW:
        _, gradient = values_and_gradients(
            coarse, lambda xs, how=how: ops.deep_supervision_loss(xs, target, downsample=how, backend=backend)
        )
        pulls[how] = gradient[0, 0, 1, 1].item()
    assert pulls["max"] < 0 < pulls["nearest"]  # descent raises the logit where the lesion lies, or lowers it
    assert pulls["area"] > pulls["max"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_a_head_of_weight_0_is_switched_off(backend, kind):
    heads, target = pyramid((8, 12), (1, 2, 2))
    heads[1] = torch.full_like(heads[1], float("nan"))
    on = values_and_gradients(
        [heads[0], heads[2]], lambda xs: ops.deep_supervision_loss(xs, target, weights=[1, 0.25], backend=backend)
    )
    off = values_and_gradients(
        heads, lambda xs: ops.deep_supervision_loss(xs, target, weights=kind([1.0, 0.0, 0.25]), backend=backend)
    )
    assert_bit_equal([on, (off[0], off[1], off[3])])
    assert (off[2] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_in_its_head_and_segment(backend):
    heads, target = pyramid((8, 8), (1, 2, 4))
    heads[1][1, 0, 2, 2] = float("nan")
    found = values_and_gradients(
        heads, lambda xs: ops.deep_supervision_loss(xs, target, reduction="none", backend=backend)
    )
    assert found[0].isnan().tolist() == [False, True, False]
    assert [gradient.isnan().any().item() for gradient in found[1:]] == [False, True, False]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("downsample", HOW)
def test_masked_pixels_take_part_in_nothing(backend, downsample):
    heads, target = pyramid((8, 12), (1, 2, 4), target_dtype=torch.float32)
    valid = mask("full", target.shape, seed=3)
    dirty = torch.where(valid, target, float("nan"))
    clean, same = (
        values_and_gradients(
            heads, lambda xs, t=t: ops.deep_supervision_loss(xs, t, mask=valid, downsample=downsample, backend=backend)
        )
        for t in (target, dirty)
    )
    assert_bit_equal([clean, same])
    off = torch.zeros(2, 2, dtype=torch.bool)
    nothing = values_and_gradients(
        heads, lambda xs: ops.deep_supervision_loss(xs, dirty, mask=off, downsample=downsample, backend=backend)
    )
    assert all((part == 0).all() for part in nothing)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("extreme", [20.0, 100.0, float("inf")])
def test_extreme_logits(backend, extreme):
    right = torch.zeros(1, 1, 7, 14, dtype=torch.uint8)
    right[..., :7] = 1
    coarse = torch.tensor([extreme, -extreme]).view(1, 1, 1, 2)
    heads = [torch.where(right == 1, extreme, -extreme), coarse]
    for how in HOW:
        found = values_and_gradients(
            heads, lambda xs, how=how: ops.deep_supervision_loss(xs, right, downsample=how, backend=backend)
        )
        assert 0 <= found[0].item() < 1e-8
        wrong = values_and_gradients(
            heads, lambda xs, how=how: ops.deep_supervision_loss(xs, 1 - right, downsample=how, backend=backend)
        )
        assert wrong[0].item() == pytest.approx(extreme + 1, rel=1e-3)
        assert all(gradient.isfinite().all() for gradient in (*found[1:], *wrong[1:]))


@pytest.mark.parametrize("backend", KERNELS)
def test_bit_equal_over_repeats_and_thread_counts(backend, two_threads):
    small = backend == "triton"
    heads, target = pyramid((8, 16) if small else (240, 200), (1, 2, 4))
    results = []
    for threads in (2, 1, 2, 7):
        torch.set_num_threads(threads)
        results.append(
            values_and_gradients(
                heads, lambda xs: ops.deep_supervision_loss(xs, target, downsample="area", backend=backend)
            )
        )
    assert_bit_equal(results)


def test_module_is_the_op():
    heads, target = pyramid((8, 8), (1, 2))
    loss = losses.DeepSupervisionLoss(weights=torch.tensor([1.0, 0.5]), downsample="max", dice_weight=0.7)
    expected = ops.deep_supervision_loss(heads, target, weights=[1.0, 0.5], downsample="max", dice_weight=0.7)
    assert_bit_equal([(loss(heads, target),), (expected,)])
    loss.weights[1] = 0.0
    heads[1].fill_(float("nan"))
    assert loss(heads, target).isfinite()
    assert not list(loss.parameters())
    assert "downsample='max'" in repr(loss)
