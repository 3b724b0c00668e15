"""`ops.focal_loss`: every backend against the definition, that against torchvision's and MONAI's; inside torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from _asserts import assert_bit_equal, assert_within_budget, loss_and_gradient
from _inputs import LAYOUTS, MASKS, TARGET_DTYPES, layout, mask, segmentation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastmtl import losses, ops
from fastmtl.ops import _backends, _focal, _focal_softmax

KERNELS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(_backends.missing(name)), reason=str(_backends.missing(name))))
    for name in ("cpp", "triton")
]
ACTIVATIONS = ("sigmoid", "softmax")
GAMMAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.7)
REDUCTIONS = ("none", "mean", "sum")
# The interpreter runs on numpy, which warns where IEEE arithmetic makes a NaN that a `where` then drops.
pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.filterwarnings(
        "ignore:(invalid value|overflow|divide by zero|All-NaN slice) encountered:RuntimeWarning"
    ),
]


def classes(shape: tuple[int, ...], dtype=torch.uint8, seed: int = 0):
    """Class numbers [B, *spatial] for logits `shape`."""
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=source).to(dtype)


def inputs(activation, shape, dtype=torch.float32, target_dtype=torch.uint8, seed=0):
    x, t = segmentation(shape, dtype, target_dtype, seed)
    return (x, t) if activation == "sigmoid" else (x, classes(shape, target_dtype, seed))


def truth(x, t, **options):
    doubled = {k: v.double() if torch.is_tensor(v) and k != "mask" else v for k, v in options.items()}
    return loss_and_gradient(lambda x: ops.focal_loss(x, t, backend="reference", **doubled), x.double())


def check(backend, x, t, **options):
    """Loss and gradient of a backend against float64 on the same numbers."""
    value, gradient = loss_and_gradient(lambda x: ops.focal_loss(x, t, backend=backend, **options), x)
    true_value, true_gradient = truth(x, t, **options)
    assert value.dtype == torch.float32
    scale = true_value.abs().max().item()
    torch.testing.assert_close(value.double(), true_value, rtol=5e-6, atol=1e-6 * scale)
    step = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(x.dtype, 1e-5)
    small = 1e-6 * true_gradient.abs().max().item() + (6e-8 if x.dtype == torch.float16 else 1e-30)
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=step, atol=small)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_matches_the_definition(backend, activation, gamma):
    for shape in ((2, 3, 16, 16), (1, 2, 7, 5), (2, 5), (2, 2, 3, 4, 5)):
        x, t = inputs(activation, shape)
        for options in ({}, {"alpha": None, "reduction": "none"}, {"alpha": torch.rand(shape[1]), "reduction": "sum"}):
            check(backend, x, t, activation=activation, gamma=gamma, weight=torch.rand(shape[1]), **options)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("target_dtype", TARGET_DTYPES, ids=str)
def test_every_target_dtype(backend, target_dtype):
    x, t = inputs("sigmoid", (2, 2, 13, 11), target_dtype=target_dtype)
    check(backend, x, t)
    if target_dtype not in (torch.bool, *_backends.FLOATING):
        x, t = inputs("softmax", (2, 4, 13, 11), target_dtype=target_dtype)
        check(backend, x, t, activation="softmax")


@pytest.mark.parametrize("backend", KERNELS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_odd_shapes_layouts_dtypes_and_masks(backend, data):
    draw = data.draw
    activation = draw(st.sampled_from(ACTIVATIONS))
    spatial = draw(st.lists(st.integers(1, 19), min_size=1, max_size=3))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1 if activation == "sigmoid" else 2, 9)), *spatial)
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    x, t = inputs(activation, shape, dtype, draw(st.sampled_from([torch.uint8, torch.int64])))
    x, kind = layout(x, draw(st.sampled_from(LAYOUTS))), draw(st.sampled_from(MASKS))
    if activation == "sigmoid":
        t, valid = layout(t, draw(st.sampled_from(LAYOUTS))), mask(kind, shape)
    else:
        t = layout(t.unsqueeze(1), draw(st.sampled_from(LAYOUTS))).squeeze(1)
        pixels = mask("pixel" if kind in ("segment", "row") else kind, (shape[0], 1, *spatial))
        valid = pixels if pixels is None or pixels.dim() == 1 else pixels.squeeze(1)
        t[:1] = draw(st.sampled_from([0, 1]))
    check(
        backend,
        x,
        t,
        activation=activation,
        gamma=draw(st.sampled_from(GAMMAS)),
        alpha=draw(st.sampled_from([None, 0.25, torch.rand(shape[1])])),
        weight=draw(st.sampled_from([None, 2.0, torch.rand(shape[1])])),
        mask=valid,
        ignore_index=-100 if activation == "sigmoid" else draw(st.sampled_from([-100, 0, 1])),
        reduction=draw(st.sampled_from(REDUCTIONS)),
    )


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_error_is_within_the_naive_formulas(backend, activation, dtype):
    def naive(x, t):
        if activation == "softmax":
            log_p = x.log_softmax(1).gather(1, t.long().unsqueeze(1))
            return (-((1 - log_p.exp()) ** 2) * log_p).mean()
        p, t = x.sigmoid(), t.to(dtype)
        entropy = F.binary_cross_entropy_with_logits(x, t, reduction="none")
        return (entropy * (1 - p * t - (1 - p) * (1 - t)) ** 2).mean()

    x, t = inputs(activation, (2, 3, 64, 64), dtype)
    options = {"alpha": None, "activation": activation}
    true_value, true_gradient = truth(x, t, **options)
    value, gradient = loss_and_gradient(lambda x: ops.focal_loss(x, t, backend=backend, **options), x)
    naive_value, naive_gradient = loss_and_gradient(lambda x: naive(x, t), x)
    assert_within_budget(value, naive_value, true_value, dtype, "loss")
    scale = true_gradient.abs().max()
    assert_within_budget(gradient / scale, naive_gradient / scale, true_gradient / scale, dtype, "gradient")


@pytest.mark.skipif(bool(_backends.missing("cpp")), reason=str(_backends.missing("cpp")))
@pytest.mark.parametrize("channels", [2, 19, 128, 700])
def test_softmax_over_many_classes_and_several_chunks(channels):
    shape = (2, channels, 40, 41)
    x, t = inputs("softmax", shape, target_dtype=torch.int16)
    check("cpp", layout(x, "channels_last"), t, activation="softmax", alpha=torch.rand(channels), reduction="none")


@pytest.mark.parametrize("backend", [*KERNELS, "reference"])
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


@pytest.mark.parametrize("backend", [*KERNELS, "reference"])
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
    """Written with plain logarithms it is NaN or 0 here in float32."""
    x = torch.tensor([25.0, 40.0, 80.0, -25.0]).view(1, 1, 2, 2)
    for t in (torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)):
        _, gradient = loss_and_gradient(lambda x, t=t: ops.focal_loss(x, t, gamma=0.5, backend=backend), x)
        _, expected = truth(x, t, gamma=0.5)
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-37)


@pytest.mark.parametrize("backend", [*KERNELS, "reference"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_masked_elements_take_part_in_nothing(backend, activation, reduction):
    shape = (3, 2, 9, 8)
    x, t = inputs(activation, shape, target_dtype=torch.int16)
    valid = mask("full", t.shape, seed=3)
    valid[0] = False
    wide = valid if activation == "sigmoid" else valid.unsqueeze(1).expand(shape)
    dirty_x, dirty_t = torch.where(wide, x, float("nan")), torch.where(valid, t, 7)
    options = {"activation": activation, "mask": valid, "reduction": reduction, "backend": backend}
    clean = loss_and_gradient(lambda x: ops.focal_loss(x, t, **options), x)
    dirty = loss_and_gradient(lambda x: ops.focal_loss(x, dirty_t, **options), dirty_x)
    assert_bit_equal([clean, dirty])
    assert (clean[1][~wide] == 0).all()
    assert clean[0].isfinite().all()
    if activation == "softmax":
        ignored = torch.where(valid, t, 99)
        options |= {"mask": None, "ignore_index": 99}
        assert_bit_equal([clean, loss_and_gradient(lambda x: ops.focal_loss(x, ignored, **options), dirty_x)])


@pytest.mark.parametrize("backend", [*KERNELS, "reference"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_masked_is_zero(backend, activation, reduction):
    x = torch.full((2, 2, 5, 5), float("nan"))
    t = torch.ones(2, 2, 5, 5) if activation == "sigmoid" else torch.ones(2, 5, 5, dtype=torch.uint8)
    off = torch.zeros(2, dtype=torch.bool)
    options = {"activation": activation, "mask": off, "reduction": reduction, "backend": backend}
    value, gradient = loss_and_gradient(lambda x: ops.focal_loss(x, t, **options), x)
    assert (value == 0).all()
    assert (gradient == 0).all()


@pytest.mark.parametrize("backend", [*KERNELS, "reference"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_nan_stays_in_its_segment(backend, activation, gamma):
    for channel in (0, 1):
        x, t = inputs(activation, (2, 2, 6, 6))
        x[1, channel, 2, 2] = float("nan")
        options = {"activation": activation, "reduction": "none", "gamma": gamma, "backend": backend}
        value, gradient = loss_and_gradient(lambda x, t=t, o=options: ops.focal_loss(x, t, **o), x)
        hit = [[False, False], [channel == 0, channel == 1]] if activation == "sigmoid" else [False, True]
        assert value.isnan().tolist() == hit
        assert gradient[0].isfinite().all()
        assert gradient[1].isnan().any()


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bit_equal_over_repeats_and_thread_counts(backend, activation, two_threads):
    x, t = inputs(activation, (2, 2, 40, 40) if backend == "triton" else (3, 2, 200, 201))
    results = []
    for threads in (2, 1, 2, 7):
        torch.set_num_threads(threads)
        for memory in ("misaligned", "contiguous"):
            memories = layout(x, memory)
            results.append(
                loss_and_gradient(lambda x: ops.focal_loss(x, t, activation=activation, backend=backend), memories)
            )
    assert_bit_equal(results)


def test_is_torchvisions_and_monais():
    monai = pytest.importorskip("monai.losses.focal_loss", reason="MONAI is not installed")
    x, t = segmentation((2, 3, 9, 8), torch.float64, torch.float64)
    hard, y = (t < 0.3).double(), classes((2, 3, 9, 8), torch.int64)
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


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_by_finite_differences(activation, gamma):
    x, t = inputs(activation, (2, 3, 2, 2), torch.float64, torch.float64 if activation == "sigmoid" else torch.int64)
    x = (x / 2).requires_grad_()
    for reduction in ("mean", "none"):
        options = {"activation": activation, "gamma": gamma, "reduction": reduction}
        assert torch.autograd.gradcheck(lambda x, o=options: ops.focal_loss(x, t, **o), x)
    assert torch.autograd.gradgradcheck(lambda x: ops.focal_loss(x, t, activation=activation, gamma=gamma), x)


def test_double_backward_on_kernels():
    x, t = segmentation((2, 2, 5, 5))
    direction = torch.randn_like(x)

    def penalty(x, backend):
        x = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(ops.focal_loss(x, t, backend=backend), x, create_graph=True)
        return torch.autograd.grad((gradient * direction.to(x.dtype)).sum(), x)[0]

    torch.testing.assert_close(penalty(x, "auto").double(), penalty(x.double(), "reference"), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck(dtype, reduction):
    for name, module, numbers in (
        ("sigmoid_focal", _focal, (2.0, 0.25, 0.75)),
        ("softmax_focal", _focal_softmax, (2.0, -100)),
    ):
        softmax = name == "softmax_focal"
        x, t = inputs("softmax" if softmax else "sigmoid", (2, 3, 6, 5), dtype)
        x = layout(x, "channels_last").requires_grad_()
        tensors = (x, t, torch.rand(3) if softmax else torch.rand(2, 3), mask("full", t.shape))
        options = module.Options(*numbers, reduction, "auto")
        op = getattr(torch.ops.fastmtl, name)
        torch.library.opcheck(op.default, (*tensors, *options))
        loss, coefficients = op(*tensors, *options)
        grad = torch.rand_like(loss).detach().requires_grad_()
        backward = getattr(torch.ops.fastmtl, f"{name}_backward").default
        torch.library.opcheck(backward, (grad, *tensors, coefficients.detach(), *options))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compiles_in_one_graph(activation):
    x, t = inputs(activation, (2, 3, 8, 8))

    def loss(x):
        return ops.focal_loss(x * 2, t, activation=activation, weight=torch.ones(3), reduction="none").sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(loss_and_gradient(compiled, x), loss_and_gradient(loss, x), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_vmap_over_tasks(activation):
    tasks = [inputs(activation, (2, 3, 6, 7), seed=seed) for seed in range(3)]
    x, t = torch.stack([x for x, _ in tasks], 1), torch.stack([t for _, t in tasks])

    def loss(x, t):
        return ops.focal_loss(x, t, activation=activation, reduction="none")

    expected = torch.stack([loss(x[:, k], t[k]) for k in range(3)])
    torch.testing.assert_close(torch.vmap(loss, in_dims=(1, 0))(x, t), expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_keeps_only_inputs_and_coefficients(activation):
    x, t = inputs(activation, (2, 3, 16, 16))
    x.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        loss = ops.focal_loss(x, t, activation=activation)
    addresses = {x.data_ptr(), t.data_ptr()}
    extra = [tensor.numel() for tensor in saved if tensor is not None and tensor.data_ptr() not in addresses]
    assert max(extra) <= 6  # slopes of the planes, factors of the classes
    loss.backward()


@pytest.mark.skipif(bool(_backends.missing("cpp")), reason=str(_backends.missing("cpp")))
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa):
    """Each in its own process: the choice is made once, at load."""
    script = (
        "import torch; from fastmtl import ops; torch.manual_seed(0)\n"
        "x = torch.cat([torch.randn(1, 3, 999) * 6, torch.linspace(-95, 95, 2997).view(1, 3, 999)])\n"
        "for activation, t in (('sigmoid', torch.rand(2, 3, 999)), ('softmax', torch.randint(0, 3, (2, 999)))):\n"
        "    for gamma in (0.0, 0.7, 1.0, 2.0, 4.5):\n"
        "        a, b = x.clone().requires_grad_(), x.double().requires_grad_()\n"
        "        o = dict(activation=activation, gamma=gamma)\n"
        "        f, g = ops.focal_loss(a, t, backend='cpp', **o), ops.focal_loss(b, t, **o)\n"
        "        f.backward(); g.backward()\n"
        "        torch.testing.assert_close(f.double(), g, rtol=1e-5, atol=0)\n"
        "        small = 1e-6 * b.grad.abs().max().item()\n"
        "        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=small)\n"
    )
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"FASTMTL_ISA": isa}, check=True, timeout=120)


def test_module_is_the_op():
    x, t = inputs("sigmoid", (2, 3, 8, 8))
    loss = losses.FocalLoss(gamma=1.5, weight=torch.rand(3))
    assert_bit_equal([(loss(x, t),), (ops.focal_loss(x, t, gamma=1.5, weight=loss.weight),)])
    assert not list(loss.parameters())
    assert "gamma=1.5" in repr(loss)


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
    ((X, T), {"backend": "gpu"}, ValueError, "`backend` must be one of .*; got 'gpu'"),
    ((X, T), {"mask": T}, ValueError, "`mask` must be bool, uint8; got float32"),
    ((X, T + 255), {}, ValueError, r"`target` must lie in 0 to 1.*target > 127"),
    ((X, T), SOFT, ValueError, r"`target` must hold class numbers \[2, 8, 8\].*argmax"),
    ((X, Y.unsqueeze(1)), SOFT, ValueError, r"got \[2, 1, 8, 8\]. Drop the channel: target.squeeze\(1\)"),
    ((X, Y.float()), SOFT, ValueError, "`target` must be uint8, int16, int32, int64; got float32"),
    ((X[:, :1], Y), SOFT, ValueError, r"`input` must be \[B, C, \*spatial\] with 2 or more channels"),
    ((X, Y + 3), SOFT, ValueError, "`target` must hold class numbers 0 to 2, as `input` has 3 channels"),
    ((X, Y + 3), SOFT | {"backend": "reference"}, ValueError, "`target` must hold class numbers 0 to 2"),
    ((X, Y), SOFT | {"mask": torch.ones(8, 8).bool()}, ValueError, r"`mask` must be \[B\] or .*got \[8, 8\]"),
    ((X.double(), T), {"backend": "cpp"}, _backends.BackendError, "backend 'cpp' cannot run `sigmoid_focal`: "),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD, ids=[case[3][:40] for case in BAD])
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.focal_loss(*arguments, **options)
