"""`ops.focal_loss`: every backend against the definition, and the definition against torchvision's and MONAI's."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.asserts import assert_equals_definition, loss_and_gradient
from helpers.inputs import MASKS, class_numbers, laid_out, layout, mask, segmentation, with_target
from helpers.op_backends import BACKENDS, KERNELS, dirty_memory, needs_cpp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastmtl import ops
from fastmtl.ops.core import backends

ACTIVATIONS = ("sigmoid", "softmax")
GAMMAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.7)
REDUCTIONS = ("none", "mean", "sum")
pytestmark = dirty_memory
check = partial(assert_equals_definition, ops.focal_loss, tolerance=5e-6)


def truth(x, t, **options):
    doubled = {k: v.double() if torch.is_tensor(v) and k != "mask" else v for k, v in options.items()}
    return loss_and_gradient(lambda x: ops.focal_loss(x, t, backend="reference", **doubled), x.double())


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_matches_the_definition(backend, activation, gamma):
    for shape in ((2, 3, 16, 16), (1, 2, 7, 5), (2, 5), (2, 2, 3, 4, 5)):
        x, t = with_target(activation, shape)
        for options in ({}, {"alpha": None, "reduction": "none"}, {"alpha": torch.rand(shape[1]), "reduction": "sum"}):
            check(backend, x, t, activation=activation, gamma=gamma, weight=torch.rand(shape[1]), **options)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("target_dtype", [torch.bool, torch.uint8], ids=str)
def test_bytes_read_in_place_are_the_floats(gamma, target_dtype):
    """Whole blocks of bytes are not copied: several per plane, at any offset, and a partial last block."""
    for shape in ((2, 3, 32, 32), (1, 2, 25, 43), (2, 2, 16, 33)):
        x, t = with_target("sigmoid", (*shape[:3], shape[3] + 1), target_dtype=target_dtype)
        x, t = x.flatten(2)[..., 3:], t.flatten(2)[..., 3:]
        for options in ({}, {"reduction": "none", "weight": torch.rand(shape[1])}, {"mask": mask("full", x.shape)}):
            found = loss_and_gradient(lambda x, o=options: ops.focal_loss(x, t, gamma=gamma, **o), x)
            floats = loss_and_gradient(lambda x, o=options: ops.focal_loss(x, t.float(), gamma=gamma, **o), x)
            torch.testing.assert_close(found[0], floats[0])  # added in another order
            assert torch.equal(found[1], floats[1])
    check("auto", x, t, gamma=gamma)


@pytest.mark.parametrize("backend", KERNELS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_odd_shapes_layouts_dtypes_and_masks(backend, data):
    draw = data.draw
    activation = draw(st.sampled_from(ACTIVATIONS))
    spatial = draw(st.lists(st.integers(1, 19), min_size=1, max_size=3))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1 if activation == "sigmoid" else 2, 9)), *spatial)
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    x, t = with_target(activation, shape, dtype, draw(st.sampled_from([torch.uint8, torch.int64])))
    x, kind = laid_out(draw, x), draw(st.sampled_from(MASKS))
    if activation == "sigmoid":
        t, valid = laid_out(draw, t), mask(kind, shape)
    else:
        pixels = mask("pixel" if kind in ("segment", "row") else kind, (shape[0], 1, *spatial))
        valid = pixels if pixels is None or pixels.dim() == 1 else pixels.squeeze(1)
        t[:1] = draw(st.sampled_from([0, 1]))
        t = laid_out(draw, t.unsqueeze(1))
    check(
        backend,
        x,
        t,
        activation=activation,
        gamma=draw(st.sampled_from(GAMMAS)),
        alpha=draw(st.sampled_from([None, 0.25, torch.rand(shape[1])])),
        weight=draw(st.sampled_from([None, 2.0, torch.rand(shape[1])])),
        mask=laid_out(draw, valid),
        ignore_index=-100 if activation == "sigmoid" else draw(st.sampled_from([-100, 0, 1])),
        reduction=draw(st.sampled_from(REDUCTIONS)),
    )


@needs_cpp
@pytest.mark.parametrize("channels", [2, 19, 128, 700])
def test_softmax_over_many_classes_and_several_chunks(channels):
    shape = (2, channels, 40, 41)
    x, t = with_target("softmax", shape, target_dtype=torch.int16)
    check("cpp", layout(x, "channels_last"), t, activation="softmax", alpha=torch.rand(channels), reduction="none")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("extreme", [20.0, 120.0, float("inf")])
def test_extreme_logits(backend, gamma, extreme):
    x = torch.tensor([extreme, -extreme, extreme, -extreme]).view(1, 1, 2, 2)
    right = torch.tensor([1, 0, 1, 0], dtype=torch.uint8).view(1, 1, 2, 2)
    options = {"gamma": gamma, "alpha": None, "backend": backend, "reduction": "sum"}
    value, gradient = loss_and_gradient(lambda x: ops.focal_loss(x, right, **options), x)
    assert 0 <= value.item() < 1e-8
    assert gradient.isfinite().all()
    value, gradient = loss_and_gradient(lambda x: ops.focal_loss(x, 1 - right, **options), x)
    assert value.item() == pytest.approx(4 * extreme)
    torch.testing.assert_close(gradient, x.sign())
    _, gradient = loss_and_gradient(lambda x: ops.focal_loss(x, right * 0.5, **options), x)
    assert gradient.isfinite().all()
    two = torch.cat([x, -x], 1) / 2
    if extreme < 1000:
        label, options = torch.zeros(1, 2, 2, dtype=torch.uint8), options | {"activation": "softmax"}
        value, gradient = loss_and_gradient(lambda x: ops.focal_loss(x, label, **options), two)
        assert value.item() == pytest.approx(2 * extreme)
        assert gradient.isfinite().all()
        torch.testing.assert_close(gradient[0, :, 0, 1], torch.tensor([-1.0, 1.0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_a_class_ruled_out_by_an_infinite_logit(backend, gamma):
    x = torch.tensor([[1.0, -float("inf"), 2.0], [0.5, 0.0, -float("inf")]]).t().reshape(1, 3, 2).contiguous()
    t = torch.tensor([[0, 2]])
    options = {"gamma": gamma, "alpha": None, "backend": backend, "activation": "softmax", "reduction": "sum"}
    value, gradient = loss_and_gradient(lambda x: ops.focal_loss(x, t, **options), x)
    assert value.item() == float("inf")
    assert gradient.isfinite().all()
    value, gradient = loss_and_gradient(lambda x: ops.focal_loss(x[..., :1], t[:, :1], **options), x)
    expected = ops.focal_loss(x[:, ::2, :1].double(), t[:, :1] // 2, **options | {"backend": "reference"})
    assert value.item() == pytest.approx(expected.item())
    assert (gradient[0, 1] == 0).all()


@pytest.mark.parametrize("backend", KERNELS)
def test_gradient_survives_confident_logits(backend):
    """Plain logarithms would give NaN or 0 here in float32."""
    x = torch.tensor([25.0, 40.0, 80.0, -25.0]).view(1, 1, 2, 2)
    for t in (torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)):
        _, gradient = loss_and_gradient(lambda x, t=t: ops.focal_loss(x, t, gamma=0.5, backend=backend), x)
        _, expected = truth(x, t, gamma=0.5)
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-37)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_nan_stays_in_its_segment(backend, activation, gamma):
    for channel in (0, 1):
        x, t = with_target(activation, (2, 2, 6, 6))
        x[1, channel, 2, 2] = float("nan")
        options = {"activation": activation, "reduction": "none", "gamma": gamma, "backend": backend}
        value, gradient = loss_and_gradient(lambda x, t=t, o=options: ops.focal_loss(x, t, **o), x)
        hit = [[False, False], [channel == 0, channel == 1]] if activation == "sigmoid" else [False, True]
        assert value.isnan().tolist() == hit
        assert gradient[0].isfinite().all()
        assert gradient[1].isnan().any()


def test_is_torchvisions_and_monais():
    monai = pytest.importorskip("monai.losses.focal_loss", reason="MONAI is not installed")
    x, t = segmentation((2, 3, 9, 8), torch.float64, torch.float64)
    hard, y = (t < 0.3).double(), class_numbers((2, 3, 9, 8), torch.int64)
    p, entropy = x.sigmoid(), F.binary_cross_entropy_with_logits(x, t, reduction="none")
    for gamma, alpha in ((2.0, 0.25), (1.5, 0.6), (0.0, 0.5)):
        # torchvision.ops.sigmoid_focal_loss, which a CPU build of torch may not import
        soft = (alpha * t + (1 - alpha) * (1 - t)) * entropy * (1 - p * t - (1 - p) * (1 - t)) ** gamma
        torch.testing.assert_close(ops.focal_loss(x, t, gamma=gamma, alpha=alpha), soft.mean())
        expected = monai.sigmoid_focal_loss(x, hard, gamma, alpha)
        torch.testing.assert_close(ops.focal_loss(x, hard, gamma=gamma, alpha=alpha), expected.mean())
        options = {"gamma": gamma, "activation": "softmax", "reduction": "sum"}
        one_hot = F.one_hot(y, 3).movedim(-1, 1).double()
        for weighting in (alpha, torch.rand(3, dtype=torch.float64), None):
            expected = monai.softmax_focal_loss(x, one_hot, gamma, weighting).sum()
            torch.testing.assert_close(ops.focal_loss(x, y, alpha=weighting, **options), expected)


X, T, Y = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8)
SOFT = {"activation": "softmax"}
BAD = [
    ((X, T[:, 0]), {}, ValueError, r"`target` must match `input` \[2, 3, 8, 8\]"),
    ((X, T), {"gamma": -1.0}, ValueError, "`gamma` must be 0 or more; got -1.0"),
    ((X, T), {"gamma": torch.ones(1)}, TypeError, "`gamma` must be a number; got Tensor"),
    ((X, T), {"alpha": float("nan")}, ValueError, "`alpha` must be finite; got nan"),
    ((X, T), {"alpha": torch.ones(2)}, ValueError, r"`alpha` must be a number, \[3\] or"),
    ((X, T), {"activation": "tanh"}, ValueError, "`activation` must be one of 'sigmoid', 'softmax'; got 'tanh'"),
    ((X, T), {"ignore_index": 255}, ValueError, r"`ignore_index` names a class.* got 255. Pass mask=target != 255"),
    ((X, T), {"reduction": "avg"}, ValueError, "`reduction` must be one of"),
    ((X, T + 255), {}, ValueError, r"`target` must lie in 0 to 1.*target > 127"),
    ((X, T), SOFT, ValueError, r"`target` must be class numbers \[2, 8, 8\] or .*argmax"),
    (
        (X, Y[:, :4]),
        SOFT,
        ValueError,
        r"`target` .* class numbers .*to fit logits \[2, 3, 8, 8\]; got \[2, 4, 8\]",
    ),
    ((X, Y.float()), SOFT, ValueError, r"`target` must be bool, uint8, int16, int32, int64; got float32. .*long\(\)"),
    ((X[:, :1], Y), SOFT, ValueError, "`input` must have a channel for each of 2 or more classes"),
    ((X, Y + 3), SOFT, ValueError, r"have no channel for \(128 pixels\): they must lie in 0 to 2"),
    ((X, Y + 3), SOFT | {"backend": "reference"}, ValueError, "they must lie in 0 to 2"),
    ((X, Y), SOFT | {"mask": torch.ones(8, 8).bool()}, ValueError, r"`mask` must be \[2\] or .*got \[8, 8\]"),
    ((X.double(), T), {"backend": "cpp"}, backends.BackendError, "backend 'cpp' cannot run `sigmoid_focal`: "),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD, ids=[case[3][:40] for case in BAD])
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.focal_loss(*arguments, **options)
