"""`ops.deep_supervision_loss`: every backend against the definition, and the definition against torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.asserts import assert_bit_equal
from helpers.heads import HOW, pyramid, values_and_gradients
from helpers.inputs import MASKS, TARGET_DTYPES, laid_out, mask
from helpers.op_backends import BACKENDS, KERNELS, dirty_memory, needs_cpp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastmtl import ops
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


@needs_cpp
@pytest.mark.parametrize("downsample", HOW)
def test_planes_of_several_chunks_and_windows_wider_than_a_buffer(downsample):
    heads, target = pyramid((72, 264), (1, 2, (3, 4), (36, 264)))
    check("cpp", heads, target, downsample=downsample, mask=mask("pixel", target.shape))
    heads, target = pyramid((2, 2500), (1, (1, 1250), 2, (2, 2500)), target_dtype=torch.float32)
    check("cpp", heads, target, downsample=downsample)


@pytest.mark.parametrize("backend", BACKENDS)
def test_max_keeps_a_lesion_of_one_pixel_alive(backend):
    """nnU-Net issue 1226: coarse heads learn to call background what nearest down-sampling deletes."""
    target = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    target[0, 0, 5, 7] = 1
    coarse = [torch.zeros(1, 1, 4, 4)]
    pulls = {}
    for how in HOW:
        _, gradient = values_and_gradients(
            coarse, lambda xs, how=how: ops.deep_supervision_loss(xs, target, downsample=how, backend=backend)
        )
        pulls[how] = gradient[0, 0, 1, 1].item()
    assert pulls["max"] < 0 < pulls["nearest"]  # descent raises the logit at the lesion, or lowers it
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


def test_weights_move_without_a_new_graph():
    heads, target = pyramid((8, 8), (1, 2))
    compiled = torch.compile(
        lambda weights: ops.deep_supervision_loss(heads, target, weights=weights), fullgraph=True, backend="aot_eager"
    )
    compiled(torch.tensor([1.0, 1.0]))
    with torch.compiler.set_stance("fail_on_recompile"):
        moved = compiled(torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(moved, ops.deep_supervision_loss(heads[:1], target))


def test_jacobian_by_torch_func():
    heads, target = pyramid((4, 4), (1, 2))
    found = torch.func.jacrev(lambda *xs: ops.deep_supervision_loss(xs, target, reduction="none"), (0, 1))(*heads)
    assert (found[0][1] == 0).all()
    assert (found[1][0] == 0).all()
    assert found[0][0].abs().max() > 0


def test_a_head_without_gradient_gets_none():
    heads, target = pyramid((8, 4), (1, 2))
    heads[0].requires_grad_()
    ops.deep_supervision_loss(heads, target).backward()
    assert heads[1].grad is None
    assert heads[0].grad is not None
    assert not ops.deep_supervision_loss([x.detach() for x in heads], target).requires_grad


@needs_cpp
def test_no_mask_of_another_size_is_made():
    """With "area" a plain loop makes float masks; the op allocates only outputs and coefficients."""
    heads, target = pyramid((256, 256), (1, 2, 4, 8))
    with torch.profiler.profile(profile_memory=True) as profile:
        ops.deep_supervision_loss(heads, target, downsample="area")
    events = profile.events()
    assert events is not None
    assert sum(max(event.cpu_memory_usage, 0) for event in events) < 4096


HEADS, T = [torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, 4)], torch.zeros(2, 3, 8, 8)
MIXED = [HEADS[0], HEADS[1].half()]
INDEX = torch.zeros(2, 8, 8, dtype=torch.uint8)
SOFTMAX = {"activation": "softmax"}
BAD = [
    ((HEADS[0], T), {}, TypeError, r"`inputs` must be a list of Tensors.*got Tensor. Pass \[logits\]"),
    (([], T), {}, ValueError, "`inputs` must contain at least one head"),
    (([*HEADS, None], T), {}, TypeError, r"`inputs\[2\]` must be a Tensor; got NoneType"),
    (([torch.zeros(2, 3)], T), {}, ValueError, r"`inputs\[0\]` must be \[B, C, \*spatial\].*got \[2, 3\]"),
    (([HEADS[0].long()], T), {}, ValueError, r"`inputs\[0\]` must be float16, .*; got int64"),
    (([HEADS[0], HEADS[1][:, :2]], T), {}, ValueError, r"`inputs\[1\]` must be \[2, 3, '\*', '\*'\] like"),
    ((MIXED, T), {}, ValueError, r"`inputs\[1\]` must be float32 like `inputs\[0\]`; got float16"),
    (([torch.zeros(2, 3, 3, 8)], T), {}, ValueError, r"`inputs\[0\]` must divide .* \[8, 8\]; got \[3, 8\]"),
    ((HEADS, T[:, 0]), {}, ValueError, r"`target` must be \[2, 3, '\*', '\*'\]"),
    (([HEADS[0][:, :1]], T[:, 0]), {}, ValueError, r"Add the channel: target.unsqueeze\(1\)"),
    ((HEADS, T + 255), {}, ValueError, r"`target` must lie in 0 to 1.*target > 127"),
    ((HEADS, T), {"weights": [1.0]}, ValueError, "`weights` must be 2 numbers, one per head; got 1"),
    ((HEADS, T), {"weights": [1.0, None]}, TypeError, r"`weights\[1\]` must be a number; got NoneType"),
    ((HEADS, T), {"weights": torch.ones(3)}, ValueError, r"`weights` must be \[2\], one per head; got \[3\]"),
    ((HEADS, T), {"weights": torch.ones(2, requires_grad=True)}, ValueError, "`weights` gets no gradient"),
    ((HEADS, T), {"weights": 1.0}, TypeError, "`weights` must be a list of numbers or a Tensor; got float"),
    ((HEADS, T), {"downsample": "mean"}, ValueError, "`downsample` must be one of 'nearest', 'area', 'max'"),
    ((HEADS, T), {"activation": "relu"}, ValueError, "`activation` must be one of 'sigmoid', 'softmax'"),
    ((HEADS, T), {"reduction": "sum"}, ValueError, "`reduction` must be one of 'mean', 'none'; got 'sum'"),
    ((HEADS, T), {"mask": T[..., :4].bool()}, ValueError, "`mask` must be .* broadcastable to `target`"),
    ((HEADS, T), {"ignore_index": 2}, ValueError, "`ignore_index` names a class"),
    ((HEADS, T), {"pos_weight": torch.ones(2)}, ValueError, "`pos_weight` must be a number"),
    ((HEADS, T), {"pointwise_weight": "1"}, TypeError, "`pointwise_weight` must be a number; got str"),
    ((HEADS, T), {"smooth_nr": -1.0}, ValueError, "`smooth_nr` must be 0 or more"),
    ((HEADS, T[:, 0]), SOFTMAX, ValueError, "`target` must be bool, uint8, int16, int32, int64; got float32"),
    ((HEADS, T.byte()), SOFTMAX, ValueError, r"`target` must be \[2, '\*', '\*'\], class numbers"),
    ((HEADS, INDEX), SOFTMAX | {"pos_weight": 1.0}, ValueError, "`pos_weight` is for activation='sigmoid'"),
    ((HEADS, INDEX), SOFTMAX | {"ignore_index": 1.0}, TypeError, "`ignore_index` must be an integer; got float"),
    ((HEADS, INDEX), SOFTMAX | {"mask": T.bool()}, ValueError, r"`mask` must be \[2\] or broadcastable to \[2, "),
    ((HEADS, INDEX + 3), SOFTMAX, ValueError, r"`target` holds class numbers"),
    (([HEADS[0][:, :1]], INDEX), SOFTMAX, ValueError, r"`inputs\[0\]` must have 2 or more classes"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD, ids=[case[3][:50] for case in BAD])
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.deep_supervision_loss(*arguments, **options)
