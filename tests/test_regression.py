"""`ops.mse_loss`, `l1_loss`, `smooth_l1_loss`: every backend against the definition, the definition against torch."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from _asserts import assert_bit_equal, assert_within_budget, loss_and_gradient
from _inputs import LAYOUTS, MASKS, TARGET_DTYPES, generator, layout, mask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastmtl import losses, ops
from fastmtl.ops import _backends
from fastmtl.ops._regression import Tensors
from fastmtl.ops._regression import layout as seen
from fastmtl.reference.regression import regression_loss

NO_CPP = pytest.mark.skipif(bool(_backends.missing("cpp")), reason=str(_backends.missing("cpp")))
KERNELS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(_backends.missing(name)), reason=str(_backends.missing(name))))
    for name in ("cpp", "triton")
]
# The interpreter runs on numpy, which warns where IEEE arithmetic makes a NaN that a `where` then drops.
pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning"),
]
LOSSES = {
    "mse": (ops.mse_loss, F.mse_loss, "squared"),
    "l1": (ops.l1_loss, F.l1_loss, "absolute"),
    "smooth": (partial(ops.smooth_l1_loss, beta=0.7), partial(F.smooth_l1_loss, beta=0.7), "smooth"),
}
SHAPES = [(5,), (7, 4), (2, 3, 16, 16), (3, 1, 33, 31), (2, 2, 3, 4, 5), (1, 2, 2500)]


def pair(shape, dtype=torch.float32, target_dtype=torch.float32, seed=0):
    """Predictions around targets: images of 0 to 255 where the target is an integer, else numbers around 0."""
    source = generator(seed)
    target = torch.randn(shape, generator=source)
    if not target_dtype.is_floating_point:
        target = torch.randint(2 if target_dtype == torch.bool else 256, shape, generator=source)
    input = target + 2 * torch.randn(shape, generator=source)
    return input.to(dtype), target.to(target_dtype)


def check(name, backend, x, t, **options):
    """Loss and gradient of a backend against float64 on the same numbers."""
    loss = LOSSES[name][0]
    value, gradient = loss_and_gradient(lambda x: loss(x, t, backend=backend, **options), x)
    exact_value, exact = loss_and_gradient(lambda x: loss(x, t, backend="reference", **options), x.double())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact_value, rtol=2e-6, atol=1e-6)
    step = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(x.dtype, 1e-5)
    # Half gradients below the smallest normal number lose digits, which no kernel can help.
    small = max({torch.float16: 6e-8}.get(x.dtype, 0.0), 1e-5 * exact.abs().max().item())
    torch.testing.assert_close(gradient.double(), exact, rtol=step, atol=small)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_definition(backend, name, shape):
    x, t = pair(shape)
    present = torch.rand(shape[0], generator=generator(1)) < 0.6
    for reduction in ("mean", "sum", "none"):
        check(name, backend, x, t, reduction=reduction, mask=present)
    check(name, backend, x, t)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("target_dtype", TARGET_DTYPES, ids=str)
def test_every_target_dtype(backend, target_dtype):
    check("mse", backend, *pair((2, 2, 13, 11), target_dtype=target_dtype))


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
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    x, t = pair(shape, dtype, draw(st.sampled_from(TARGET_DTYPES)))
    x, t = layout(x, draw(st.sampled_from(LAYOUTS))), layout(t, draw(st.sampled_from(LAYOUTS)))
    reduction = draw(st.sampled_from(["none", "mean", "sum"]))
    valid = mask(draw(st.sampled_from(MASKS)), shape)
    check(draw(st.sampled_from(list(LOSSES))), backend, x, t, reduction=reduction, mask=valid)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_error_is_within_the_naive_formulas(backend, dtype, name):
    if backend == "triton" and dtype == torch.bfloat16 and _backends.interpreting():
        pytest.skip("the interpreter cuts bfloat16 off, where compiled code rounds")
    x, t = pair((2, 2, 64, 64), dtype)
    ours, torchs, _ = LOSSES[name]
    found = loss_and_gradient(lambda x: ours(x, t, backend=backend), x)
    naive = loss_and_gradient(lambda x: torchs(x, t.to(dtype)), x)
    exact = loss_and_gradient(lambda x: torchs(x, t.double()), x.double())
    for a, b, c in zip(found, naive, exact, strict=True):
        assert_within_budget(a / c.abs().max(), b / c.abs().max(), c / c.abs().max(), dtype)


@pytest.mark.parametrize("name", LOSSES)
def test_parity_with_torch(name):
    ours, torchs, _ = LOSSES[name]
    x, t = pair((3, 4, 5), torch.float64)
    for reduction in ("mean", "sum"):
        for a, b in zip(
            loss_and_gradient(lambda x, r=reduction: ours(x, t, reduction=r), x),
            loss_and_gradient(lambda x, r=reduction: torchs(x, t, reduction=r), x),
            strict=True,
        ):
            torch.testing.assert_close(a, b)
    torch.testing.assert_close(ours(x, t, reduction="none"), torchs(x, t, reduction="none").mean((1, 2)))


@pytest.mark.parametrize("backend", [*KERNELS, "reference"])
@pytest.mark.parametrize("beta", [0.0, 1e-35, 1e-3, 1e6])
def test_beta_of_any_size(backend, beta):
    x, t = torch.tensor([0.0, 1.0, -2.0, 5.0, 1e-3]), torch.tensor([0.0, 0.0, 0.0, 5.0, 0.0])
    found = loss_and_gradient(lambda x: ops.smooth_l1_loss(x, t, beta=beta, reduction="none", backend=backend), x)
    exact = loss_and_gradient(lambda x: F.smooth_l1_loss(x, t.double(), beta=beta, reduction="none"), x.double())
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("backend", [*KERNELS, "reference"])
@pytest.mark.parametrize("name", LOSSES)
def test_infinities_and_nan_stay_in_their_sample(backend, name):
    x, t = pair((4, 2, 6))
    x[1, 0, 3], x[2, 1, 1], x[3, 0, 0] = float("inf"), float("nan"), 1e18
    value, gradient = loss_and_gradient(
        lambda x: LOSSES[name][0](x, t, reduction="none", backend=backend), x, torch.ones(4)
    )
    assert value.isnan().tolist() == [False, False, True, False]
    assert value.isinf().tolist() == [False, True, False, False]
    assert gradient.isnan().flatten(1).any(1).tolist() == [False, False, True, False]
    assert gradient[1, 0, 3] == (float("inf") if name == "mse" else 1 / 12)


@pytest.mark.parametrize("backend", [*KERNELS, "reference"])
@pytest.mark.parametrize("kind", ["sample", "segment", "pixel", "full"])
def test_masked_elements_take_part_in_nothing(backend, kind):
    shape = (3, 2, 9, 8)
    x, t = pair(shape)
    valid = mask(kind, shape, seed=3)
    full = valid.view(*valid.shape, *(1,) * (4 - valid.dim())).expand(shape)
    dirty_x, dirty_t = torch.where(full, x, float("nan")), torch.where(full, t, float("inf"))
    for name in LOSSES:
        for reduction in ("mean", "sum", "none"):
            loss = partial(LOSSES[name][0], mask=valid, reduction=reduction, backend=backend)
            clean = loss_and_gradient(lambda x, loss=loss: loss(x, t), x)
            assert_bit_equal([clean, loss_and_gradient(lambda x, loss=loss: loss(x, dirty_t), dirty_x)])
            assert (clean[1][~full] == 0).all()
            off = loss_and_gradient(
                lambda x, name=name, r=reduction: LOSSES[name][0](
                    x, dirty_t, mask=torch.zeros(3, dtype=torch.uint8), reduction=r, backend=backend
                ),
                dirty_x,
            )
            assert all((part == 0).all() for part in off)


@pytest.mark.parametrize("backend", KERNELS)
def test_bit_equal_over_repeats_and_thread_counts(backend, two_threads):
    x, t = pair((2, 2, 40, 40) if backend == "triton" else (3, 2, 200, 201))
    results = []
    for threads in (2, 1, 2, 7):
        torch.set_num_threads(threads)
        for memory in ("contiguous", "misaligned"):
            results.append(loss_and_gradient(lambda x: ops.mse_loss(x, t, backend=backend), layout(x, memory)))
    assert_bit_equal(results)


def test_a_sample_is_one_run_of_memory_where_it_can_be():
    x, t = pair((2, 3, 8, 8))
    present = torch.tensor([True, False]).view(torch.uint8).view(2, 1, 1, 1).expand(x.shape)
    assert seen(Tensors(x, t, None)).shape == seen(Tensors(x, t, present)).shape == (2, 1, 192)
    last = layout(x, "channels_last"), layout(t, "channels_last")
    assert seen(Tensors(*last, present), last[0]).shape == (2, 1, 192)
    assert seen(Tensors(last[0], t, None)).shape == (2, 3, 64)
    _, gradient = loss_and_gradient(lambda x: ops.mse_loss(x, t), last[0])
    assert gradient.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_by_finite_differences(name):
    x, t = pair((3, 2, 2), torch.float64, torch.float64)
    x.requires_grad_()
    ours, _, error = LOSSES[name]
    valid = torch.tensor([True, False, True]).view(3, 1, 1)
    assert torch.autograd.gradcheck(lambda x: regression_loss(x, t, valid, error=error, reduction="none"), x)
    for reduction in ("mean", "none"):
        loss = partial(ours, target=t, reduction=reduction, mask=valid)
        assert torch.autograd.gradcheck(loss, x)
        assert torch.autograd.gradgradcheck(loss, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck(dtype, reduction):
    x, t = pair((2, 3, 6, 5), dtype, torch.uint8)
    options = ("smooth", 0.5, reduction, "auto")
    tensors = (layout(x, "channels_last").requires_grad_(), t, mask("full", x.shape))
    torch.library.opcheck(torch.ops.fastmtl.regression.default, (*tensors, *options))
    loss, slopes = torch.ops.fastmtl.regression(*tensors, *options)
    grad = torch.rand_like(loss).detach().requires_grad_()
    torch.library.opcheck(torch.ops.fastmtl.regression_backward.default, (grad, *tensors, slopes.detach(), *options))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph(dynamic):
    x, t = pair((6, 4))
    present = torch.arange(6) > 2

    def loss(x):
        return ops.smooth_l1_loss(x * 2, t, mask=present, reduction="none").sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for a, b in zip(loss_and_gradient(compiled, x), loss_and_gradient(loss, x), strict=True):
        torch.testing.assert_close(a, b)


def test_vmap_over_tasks():
    tasks = [pair((4, 5), seed=seed) for seed in range(3)]
    x, t = torch.stack([x for x, _ in tasks], 1), torch.stack([t for _, t in tasks])
    present = torch.tensor([True, False, True, True])
    loss = partial(ops.mse_loss, mask=present, reduction="none")
    expected = torch.stack([loss(*task) for task in tasks])
    torch.testing.assert_close(torch.vmap(loss, in_dims=(1, 0))(x, t), expected)


def test_backward_keeps_only_inputs_and_a_number_per_sample():
    x, t = pair((2, 3, 16, 16), target_dtype=torch.uint8)
    x.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        loss = ops.mse_loss(x, t)
    extra = [tensor for tensor in saved if tensor.data_ptr() not in {x.data_ptr(), t.data_ptr()}]
    assert [tuple(tensor.shape) for tensor in extra] == [(1,)]  # the batch is one run
    loss.backward()


@NO_CPP
@pytest.mark.parametrize("isa", ["baseline", "avx2"])  # the best one is in all other tests
def test_every_instruction_set(isa):
    """Each in its own process: the choice is made once, at load."""
    script = (
        "import torch; from fastmtl import ops; torch.manual_seed(0)\n"
        "for loss in (ops.mse_loss, ops.l1_loss, ops.smooth_l1_loss):\n"
        "    x = (torch.randn(2, 2, 999) * 3).requires_grad_(); t = torch.randint(9, (2, 2, 999))\n"
        "    y = x.detach().double().requires_grad_()\n"
        "    a = loss(x, t, backend='cpp'); b = loss(y, t); a.backward(); b.backward()\n"
        "    torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=0)\n"
        "    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-5, atol=1e-9)\n"
    )
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"FASTMTL_ISA": isa}, check=True, timeout=120)


@NO_CPP
def test_offsets_past_two_to_the_31():
    """Strides that reach past 2^31 elements, over storage of which only the touched pages exist."""
    far = 2**31 + 4096
    whole = torch.empty_strided((far + 64,), (1,), dtype=torch.uint8)  # not poisoned: most pages must not be touched
    whole[:64], whole[far:] = 0, 1
    t = whole.as_strided((2, 1, 64), (far, 64, 1))
    x = torch.randn(2, 1, 64)
    expected = ops.mse_loss(x, torch.stack([torch.zeros(1, 64), torch.ones(1, 64)]), reduction="none")
    assert_bit_equal([(ops.mse_loss(x, t, reduction="none"),), (expected,)])


def test_modules_are_the_ops():
    x, t = pair((4, 4))
    present = torch.tensor([True, False, True, True])
    for module, loss in (
        (losses.MSELoss(reduction="none"), partial(ops.mse_loss, reduction="none")),
        (losses.L1Loss(), ops.l1_loss),
        (losses.SmoothL1Loss(beta=0.2), partial(ops.smooth_l1_loss, beta=0.2)),
    ):
        assert_bit_equal([(module(x, t, present),), (loss(x, t, mask=present),)])
    assert "beta=0.2" in repr(losses.SmoothL1Loss(beta=0.2))


X, T = torch.zeros(2, 4), torch.zeros(2, 4)
BAD = [
    ((X, None), {}, TypeError, "`target` must be a Tensor; got NoneType"),
    ((X[0, 0], T[0, 0]), {}, ValueError, r"`input` must be \[B, ...\]; got a scalar"),
    ((X[:0], T[:0]), {}, ValueError, r"`input` must have at least one element; got \[0, 4\]"),
    ((X, T[:, :1]), {}, ValueError, r"`target` must match `input` \[2, 4\]; got \[2, 1\]. Nothing is broadcast"),
    ((X.long(), T), {}, ValueError, "`input` must be float16, bfloat16, float32, float64; got int64"),
    ((X, T.to(torch.int8)), {}, ValueError, "`target` must be bool, uint8, .*; got int8"),
    ((X, T.to("meta")), {}, ValueError, "`target` must be on cpu like `input`; got meta"),
    ((X, T.clone().requires_grad_()), {}, ValueError, r"`target` gets no gradient .* Pass `target.detach\(\)`"),
    ((X, T), {"beta": -1.0}, ValueError, "`beta` must lie in 0 to 1e\\+30; got -1.0"),
    ((X, T), {"reduction": "avg"}, ValueError, "`reduction` must be one of 'none', 'mean', 'sum'; got 'avg'"),
    ((X, T), {"mask": T}, ValueError, "`mask` must be bool, uint8; got float32"),
    ((X, T), {"mask": torch.ones(3).bool()}, ValueError, r"`mask` must be .*; got \[3\]"),
    ((X, T), {"backend": "gpu"}, ValueError, "`backend` must be one of .*; got 'gpu'"),
    ((X.double(), T), {"backend": "cpp"}, _backends.BackendError, "backend 'cpp' cannot run `regression`: "),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD, ids=[case[3][:40] for case in BAD])
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.smooth_l1_loss(*arguments, **options)
