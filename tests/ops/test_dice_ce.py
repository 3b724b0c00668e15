"""`ops.dice_ce_loss`: every backend against the definition, and the definition against MONAI and torch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.asserts import assert_bit_equal, assert_equals_definition, loss_and_gradient
from helpers.classes import CLASS_DTYPES, PIXEL_MASKS, class_map, pixel_mask
from helpers.inputs import laid_out, layout
from helpers.op_backends import BACKENDS, KERNELS, dirty_memory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastmtl import ops
from fastmtl.ops.core import backends
from fastmtl.ops.losses.dice_ce_backends import Options

pytestmark = dirty_memory
check = partial(assert_equals_definition, ops.dice_ce_loss, tolerance=3e-6)
EVERYTHING = {"squared_pred": True, "jaccard": True, "label_smoothing": 0.1, "include_background": False}


def truth(x, t, **options):
    doubled = {k: v.double() if torch.is_tensor(v) and k != "mask" else v for k, v in options.items()}
    return loss_and_gradient(lambda x: ops.dice_ce_loss(x, t, backend="reference", **doubled), x.double())


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("soft_dtype", [torch.float32, torch.float16, torch.uint8], ids=str)
def test_probabilities_as_target(backend, soft_dtype):
    x, t = class_map((2, 4, 9, 7))
    t = torch.randn(x.shape).softmax(1).to(soft_dtype) if soft_dtype.is_floating_point else F.one_hot(t.long(), 4)
    t = t if soft_dtype.is_floating_point else t.movedim(-1, 1).to(soft_dtype)
    check(backend, x, t, weight=torch.rand(4))
    check(backend, x, t, mask=pixel_mask("pixel", x.shape), reduction="none", **EVERYTHING)


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


def test_planes_of_several_chunks_and_a_mixed_layout():
    x, t = class_map((2, 3, 150, 130))
    check("cpp", x, t)
    check("cpp", layout(x, "channels_last"), t, mask=pixel_mask("pixel", x.shape))
    _, gradient = loss_and_gradient(lambda x: ops.dice_ce_loss(x, t), layout(x, "channels_last"))
    assert gradient.is_contiguous(memory_format=torch.channels_last)


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
        {"include_background": False, "weight": torch.tensor([0.3, 0.9, 0.1, 0.6]).double()},
        {"weight": torch.tensor([0.7, 0.2, 0.5, 0.8]).double(), "label_smoothing": 0.2},
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


@pytest.mark.parametrize("backend", KERNELS)
def test_confident_logits_keep_their_small_losses_and_gradients(backend):
    """1 - p_y and log p_y from p_y rounded in float32 would both be 0 here."""
    x, t = torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2, 0]])
    x.scatter_add_(1, t.unsqueeze(1), torch.tensor([[[16.0, 18.0, 20.0, 22.0]]]))
    for options in ({"dice_weight": 0.0}, {"ce_weight": 0.0, "dice_weight": 1.0, "smooth_nr": 1.0, "smooth_dr": 1.0}):
        _, gradient = loss_and_gradient(lambda x, o=options: ops.dice_ce_loss(x, t, backend=backend, **o), x)
        _, true_gradient = truth(x, t, **options)
        torch.testing.assert_close(gradient.double(), true_gradient, rtol=2e-5, atol=1e-37)
    value, _ = loss_and_gradient(lambda x: ops.dice_ce_loss(x, t, dice_weight=0.0, backend=backend), x)
    torch.testing.assert_close(value.double(), truth(x, t, dice_weight=0.0)[0], rtol=1e-5, atol=0)
    wrong = ops.dice_ce_loss(x, (t + 1) % 3, dice_weight=0.0, ce_weight=1.0, backend=backend)
    assert wrong.item() == pytest.approx((16 + 18 + 20 + 22) / 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinite_logits(backend):
    x, t = class_map((1, 3, 2, 8))
    excluded = x.clone()
    excluded[:, 2] = -float("inf")
    value, gradient = loss_and_gradient(
        lambda x: ops.dice_ce_loss(x, t.clamp(max=1), include_background=False, backend=backend), excluded
    )
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[:, 2] == 0).all()
    assert ops.dice_ce_loss(excluded, torch.full_like(t, 2), backend=backend).item() == float("inf")
    x[0, 1, 0, 0] = float("inf")
    assert ops.dice_ce_loss(x, t, backend=backend).isnan()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("how", ["mask", "ignore_index"])
def test_nothing_valid_is_zero(backend, reduction, how):
    x, t = torch.full((2, 3, 5, 5), float("nan")), torch.full((2, 5, 5), -100)
    options = {"mask": torch.zeros(2, dtype=torch.bool)} if how == "mask" else {}
    value, gradient = loss_and_gradient(
        lambda x: ops.dice_ce_loss(x, t, reduction=reduction, smooth_dr=0.0, backend=backend, **options), x
    )
    assert (value == 0).all()
    assert (gradient == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_policies(backend):
    x, t = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)
    x[:, 2] = -float("inf")  # class 2 is in neither target nor prediction, class 1 only in the prediction

    def dice(**options):
        return ops.dice_ce_loss(x, t, ce_weight=0.0, dice_weight=3.0, backend=backend, **options).item()

    first, second = 1 - (16 + 1e-5) / (24 + 1e-5), 1 - 1e-5 / (8 + 1e-5)
    assert dice(empty="one") == pytest.approx(first + second)
    assert dice(empty="zero") == pytest.approx(first + second + 1)
    assert dice(empty="skip") == pytest.approx(3 * first)
    assert dice(empty="skip", include_background=False) == 0.0


@pytest.mark.long
def test_opcheck_of_counts():
    x, t = class_map((2, 3, 6, 5))
    options = Options(reduction="none", counts=True)
    x = layout(x, "channels_last").requires_grad_()
    tensors = (x, t.unsqueeze(1), torch.rand(3), pixel_mask("pixel", x.shape).unsqueeze(1))
    torch.library.opcheck(torch.ops.fastmtl.dice_ce.default, (*tensors, *options))
    loss, coefficients, _ = torch.ops.fastmtl.dice_ce(*tensors, *options)
    grad = torch.rand_like(loss).detach().requires_grad_()
    arguments = (grad, *tensors, coefficients.detach(), *options)
    torch.library.opcheck(torch.ops.fastmtl.dice_ce_backward.default, arguments)


@pytest.mark.parametrize("loss", [ops.dice_ce_loss, ops.cross_entropy], ids=lambda loss: loss.__name__)
def test_compiles_where_the_batch_of_the_logits_alone_is_dynamic(loss):
    torch._dynamo.reset()
    x, t = class_map((6, 3, 6, 5))
    torch._dynamo.maybe_mark_dynamic(x, 0)
    compiled = torch.compile(lambda x: loss(x, t), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), loss(x, t), rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("wrong", [3, -1, 2**32, -(2**31) - 98])
def test_a_class_number_out_of_range_raises_on_the_cpu(backend, wrong):
    x, t = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    t[0, 1, 1] = wrong
    message = r"`target` holds class numbers that the logits have no channel for \(1 pixels\): they must lie in 0 to 2"
    with pytest.raises(ValueError, match=message):
        ops.dice_ce_loss(x, t, backend=backend)
    with pytest.raises(ValueError, match=message):
        ops.overlap_sums(x, t, activation="softmax", backend=backend)
    with pytest.raises(ValueError, match=message):
        ops.focal_loss(x, t, activation="softmax", backend=backend)
    assert ops.dice_ce_loss(x, t, ignore_index=wrong, backend=backend).isfinite()
    assert ops.dice_ce_loss(x, t, mask=t != wrong, backend=backend).isfinite()


X, T = torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64)
BAD = [
    (
        (X, T[:, :4]),
        {},
        ValueError,
        r"`target` must be class numbers \[2, 8, 8\] or \[2, 1, 8, 8\], or prob.*\[2, 4, 8\]",
    ),
    ((X, X.movedim(1, -1)), {}, ValueError, r"got \[2, 8, 8, 3\]. Move its channels: target.movedim\(-1, 1\)"),
    ((X, T.float()), {}, ValueError, r"`target` must be bool, uint8, .*; got float32. .* target.long\(\)"),
    ((X[:, :1], T), {}, ValueError, "`input` must have a channel for each of 2 or more classes.* for a sigmoid"),
    ((X[0, 0, 0], T[0, 0]), {}, ValueError, r"`input` must be \[B, C, \*spatial\]; got \[8\]"),
    ((X, T), {"ce_weight": float("nan")}, ValueError, "`ce_weight` must be finite; got nan"),
    ((X, T), {"dice_weight": None}, TypeError, "`dice_weight` must be a number; got NoneType"),
    ((X, T), {"batch": "no"}, TypeError, "`batch` must be True or False; got 'no'"),
    ((X, T), {"include_background": 0}, TypeError, "`include_background` must be True or False; got 0"),
    ((X, T), {"label_smoothing": 1.5}, ValueError, "`label_smoothing` must lie in 0 to 1; got 1.5"),
    ((X, T), {"ignore_index": 1.0}, TypeError, "`ignore_index` must be an integer; got float"),
    ((X, T), {"ignore_index": 2**70}, ValueError, "`ignore_index` must fit into int64"),
    ((X, T), {"smooth_nr": -1.0}, ValueError, "`smooth_nr` must be 0 or more; got -1.0"),
    ((X, T), {"empty": "two"}, ValueError, "`empty` must be one of 'one', 'zero', 'skip'; got 'two'"),
    ((X, T), {"reduction": "total"}, ValueError, "`reduction` must be one of 'none', 'mean', 'sum'; got 'total'"),
    ((X, T), {"reduction": "none", "batch": True}, ValueError, "`reduction` must be 'mean' with batch=True"),
    ((X, T), {"weight": torch.ones(2)}, ValueError, r"`weight` must be \[3\], one per class; got \[2\]"),
    ((X, T), {"weight": [1, 1, 1]}, TypeError, "`weight` must be a Tensor; got list"),
    ((X, T), {"weight": torch.ones(3, requires_grad=True)}, ValueError, "`weight` gets no gradient"),
    ((X, T), {"mask": torch.ones(8, 8).bool()}, ValueError, r"`mask` must be \[2\] or broad.* \[2, 8, 8\] .*\[8, 8\]"),
    ((X, X), {"return_counts": True}, ValueError, r"`return_counts` needs class numbers .* target.argmax\(1\)"),
    ((X.double(), T), {"backend": "cpp"}, backends.BackendError, "backend 'cpp' cannot run `dice_ce`: "),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD, ids=[case[3][:40] for case in BAD])
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.dice_ce_loss(*arguments, **options)
