"""`ops.dice_bce_loss`: every backend against the definition, and the definition against MONAI and torch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.asserts import assert_equals_definition, loss_and_gradient
from helpers.inputs import MASKS, TARGET_DTYPES, laid_out, layout, mask, segmentation
from helpers.op_backends import BACKENDS, KERNELS, dirty_memory, needs_cpp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastmtl import ops
from fastmtl.ops.core import backends
from fastmtl.ops.core.planes import strides
from fastmtl.ops.losses.dice_bce_backends import Options

pytestmark = dirty_memory
check = partial(assert_equals_definition, ops.dice_bce_loss)


def truth(x, t, **options):
    doubled = {k: v.double() if torch.is_tensor(v) and k != "mask" else v for k, v in options.items()}
    return loss_and_gradient(lambda x: ops.dice_bce_loss(x, t, backend="reference", **doubled), x.double())


@pytest.mark.parametrize("backend", KERNELS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_odd_shapes_layouts_dtypes_and_masks(backend, data):
    draw = data.draw
    shape = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, 4)),
        *draw(st.lists(st.integers(1, 19), max_size=3)),
    )
    x, t = segmentation(
        shape, draw(st.sampled_from([torch.float32, torch.bfloat16])), draw(st.sampled_from(TARGET_DTYPES))
    )
    x, t = laid_out(draw, x), laid_out(draw, t)
    check(
        backend,
        x,
        t,
        mask=laid_out(draw, mask(draw(st.sampled_from(MASKS if len(shape) > 2 else MASKS[:3])), shape)),
        batch=draw(st.booleans()),
        squared_pred=draw(st.booleans()),
        jaccard=draw(st.booleans()),
        empty=draw(st.sampled_from(["one", "zero", "skip"])),
        reduction=draw(st.sampled_from(["none", "mean", "sum"])),
        weight=draw(st.sampled_from([None, torch.rand(shape[1])])),
        pos_weight=draw(st.sampled_from([None, torch.rand(shape[1]) * 3])),
    )


@needs_cpp
def test_extreme_range_of_logits_and_rounding_of_half_gradients():
    x = torch.cat([torch.randn(1, 2, 999) * 6, torch.linspace(-95, 95, 1998).view(1, 2, 999)])
    t = torch.rand(2, 2, 999) < 0.3
    value, gradient = loss_and_gradient(lambda x: ops.dice_bce_loss(x, t, backend="cpp"), x)
    true_value, true_gradient = truth(x, t)
    torch.testing.assert_close(value.double(), true_value, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=2e-5, atol=1e-25)
    soft = torch.rand(1, 1, 4000)
    for dtype in (torch.float16, torch.bfloat16):
        half, t = (torch.randn(1, 1, 4000) * 30).to(dtype), soft.to(dtype)
        _, gradient = loss_and_gradient(lambda x, t=t: ops.dice_bce_loss(x, t, backend="cpp"), half)
        _, wide = loss_and_gradient(lambda x, t=t: ops.dice_bce_loss(x, t, backend="cpp"), half.float())
        assert torch.equal(gradient, wide.to(dtype))


@needs_cpp
def test_planes_of_several_chunks_and_a_mixed_layout():
    x, t = segmentation((2, 3, 150, 130))
    check("cpp", x, t)
    check("cpp", layout(x, "channels_last"), t, mask=mask("pixel", x.shape))
    assert ops.dice_bce_loss(layout(x, "channels_last"), t, reduction="none").shape == (2, 3)


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


@pytest.mark.long
def test_opcheck_of_groups_and_counts():
    """As vmap does when it folds samples into the batch."""
    x, t = segmentation((2, 3, 6, 5))
    options = Options(reduction="none", groups=2, counts=True)
    weights = torch.rand(3 * options.groups), torch.rand(3 * options.groups)
    x = layout(x, "channels_last").requires_grad_()
    tensors = (x, t, *weights, mask("full", x.shape))
    torch.library.opcheck(torch.ops.fastmtl.dice_bce.default, (*tensors, *options))
    loss, coefficients, _ = torch.ops.fastmtl.dice_bce(*tensors, *options)
    grad = torch.rand_like(loss).detach().requires_grad_()
    arguments = (grad, *tensors, coefficients.detach(), *options)
    torch.library.opcheck(torch.ops.fastmtl.dice_bce_backward.default, arguments)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from Inductor, at import
def test_compiles_with_inductor():
    x, t = segmentation((2, 3, 8, 8))

    def loss(x):
        return ops.dice_bce_loss(x * 2, t)

    compiled = torch.compile(loss, fullgraph=True)
    for a, b in zip(loss_and_gradient(compiled, layout(x, "channels_last")), loss_and_gradient(loss, x), strict=True):
        torch.testing.assert_close(a, b)


def test_nested_vmap_with_masks_and_pos_weights():
    x = torch.randn(2, 3, 2, 1, 4, 4)
    t, valid, pos_weight = (torch.rand_like(x) < 0.5), torch.rand(2, 3, 2, 1, 1, 1) < 0.7, torch.rand(2, 3, 1)

    def loss(x, t, valid, pos_weight):
        return ops.dice_bce_loss(x, t, mask=valid, pos_weight=pos_weight)

    nested = torch.vmap(torch.vmap(loss))(x, t, valid, pos_weight)
    expected = [[loss(x[i, j], t[i, j], valid[i, j], pos_weight[i, j]) for j in range(3)] for i in range(2)]
    torch.testing.assert_close(nested, torch.stack([torch.stack(row) for row in expected]))


def test_strides_of_layouts():
    x = torch.zeros(2, 3, 4, 5)
    assert strides(x) == (60, 20, 1)
    assert strides(layout(x, "channels_last")) == (60, 1, 3)
    assert strides(layout(x, "expanded")) == (0, 20, 1)
    assert strides(layout(x, "cropped")) is None
    assert strides(layout(x, "transposed")) is None
    assert strides(torch.zeros(2, 3, 1, 1).expand(2, 3, 4, 5)) == (3, 1, 0)


X, T = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
BAD = [
    (
        (X, T[:, 0]),
        {},
        ValueError,
        r"`target` must match `input` \[2, 3, 8, 8\]; got \[2, 8, 8\]. One-hot encode it first",
    ),
    ((X[:, :1], T[:, 0]), {}, ValueError, r"Add the channel: target.unsqueeze\(1\)"),
    ((X, T.movedim(1, -1)), {}, ValueError, r"got \[2, 8, 8, 3\]. Move its channels: target.movedim\(-1, 1\)"),
    ((X, T[..., :4]), {}, ValueError, r"got \[2, 3, 8, 4\]. Resize one of them"),
    ((X, T), {"bce_weight": float("nan")}, ValueError, "`bce_weight` must be finite; got nan"),
    ((X, T), {"dice_weight": None}, TypeError, "`dice_weight` must be a number; got NoneType"),
    ((X, T), {"batch": "no"}, TypeError, "`batch` must be True or False; got 'no'"),
    ((X, T + 255), {}, ValueError, r"`target` must lie in 0 to 1.*target > 127"),
    ((X[0, 0, 0], T[0, 0, 0]), {}, ValueError, r"`input` must be \[B, C, \*spatial\]; got \[8\]"),
    ((X, T.to(torch.int8)), {}, ValueError, "`target` must be bool, uint8, .*; got int8"),
    ((X, T), {"smooth_nr": -1.0}, ValueError, "`smooth_nr` must be 0 or more; got -1.0"),
    ((X, T), {"smooth_dr": float("nan")}, ValueError, "`smooth_dr` must be finite; got nan"),
    ((X, T), {"empty": "two"}, ValueError, "`empty` must be one of 'one', 'zero', 'skip'; got 'two'"),
    ((X, T), {"reduction": "avg"}, ValueError, "`reduction` must be one of 'none', 'mean', 'sum'; got 'avg'"),
    ((X, T), {"weight": torch.ones(2)}, ValueError, r"`weight` must be a number, \[3\] or .*; got \[2\]"),
    ((X, T), {"pos_weight": torch.ones(1, 1, 3)}, ValueError, r"`pos_weight` must be a number.*got \[1, 1, 3\]"),
    ((X, T), {"weight": torch.ones(3, requires_grad=True)}, ValueError, "`weight` gets no gradient"),
    ((X, T), {"mask": torch.ones(8, 8).bool()}, ValueError, r"`mask` must be \[B\], \[B, C\] or .*; got \[8, 8\]"),
    ((X, T), {"mask": torch.ones(2, 3, 8).bool()}, ValueError, r"`mask` must be .*; got \[2, 3, 8\]"),
    ((X.double(), T), {"backend": "cpp"}, backends.BackendError, "backend 'cpp' cannot run `dice_bce`: "),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD, ids=[case[3][:40] for case in BAD])
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.dice_bce_loss(*arguments, **options)
