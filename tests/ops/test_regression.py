"""`ops.mse_loss`, `l1_loss`, `smooth_l1_loss`: every backend against the definition, the definition against torch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.asserts import assert_equals_definition, loss_and_gradient
from helpers.inputs import MASKS, TARGET_DTYPES, generator, laid_out, layout, mask
from helpers.op_backends import BACKENDS, KERNELS, dirty_memory
from helpers.regression import LOSSES, pair
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastmtl import ops
from fastmtl.ops.core import backends
from fastmtl.ops.losses.regression_backends import Tensors
from fastmtl.ops.losses.regression_backends import layout as seen

pytestmark = dirty_memory
check = partial(assert_equals_definition, tolerance=5e-6)
SHAPES = [(5,), (7, 4), (2, 3, 16, 16), (3, 1, 33, 31), (2, 2, 3, 4, 5), (1, 2, 2500)]


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_definition(backend, name, shape):
    x, t = pair(shape)
    has_label = torch.rand(shape[0], generator=generator(1)) < 0.6
    for reduction in ("mean", "sum", "none"):
        check(LOSSES[name][0], backend, x, t, reduction=reduction, mask=has_label)
    check(LOSSES[name][0], backend, x, t)


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
    x, t = laid_out(draw, x), laid_out(draw, t)
    reduction = draw(st.sampled_from(["none", "mean", "sum"]))
    valid = laid_out(draw, mask(draw(st.sampled_from(MASKS)), shape))
    check(LOSSES[draw(st.sampled_from(list(LOSSES)))][0], backend, x, t, reduction=reduction, mask=valid)


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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("beta", [0.0, 1e-35, 1e-3, 1e6])
def test_beta_of_any_size(backend, beta):
    x, t = torch.tensor([0.0, 1.0, -2.0, 5.0, 1e-3]), torch.tensor([0.0, 0.0, 0.0, 5.0, 0.0])
    found = loss_and_gradient(lambda x: ops.smooth_l1_loss(x, t, beta=beta, reduction="none", backend=backend), x)
    exact = loss_and_gradient(lambda x: F.smooth_l1_loss(x, t.double(), beta=beta, reduction="none"), x.double())
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
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


def test_a_sample_is_one_run_of_memory_where_it_can_be():
    x, t = pair((2, 3, 8, 8))
    has_label = torch.tensor([True, False]).view(torch.uint8).view(2, 1, 1, 1).expand(x.shape)
    assert seen(Tensors(x, t, None)).shape == seen(Tensors(x, t, has_label)).shape == (2, 1, 192)
    last = layout(x, "channels_last"), layout(t, "channels_last")
    assert seen(Tensors(*last, has_label), last[0]).shape == (2, 1, 192)
    assert seen(Tensors(last[0], t, None)).shape == (2, 3, 64)
    _, gradient = loss_and_gradient(lambda x: ops.mse_loss(x, t), last[0])
    assert gradient.is_contiguous(memory_format=torch.channels_last)


X, T = torch.zeros(2, 4), torch.zeros(2, 4)
BAD = [
    ((X[0, 0], T[0, 0]), {}, ValueError, r"`input` must be \[B, ...\]; got a scalar"),
    ((X, T[:, :1]), {}, ValueError, r"`target` must match `input` \[2, 4\]; got \[2, 1\]. Nothing is broadcast"),
    ((X, T.to(torch.int8)), {}, ValueError, "`target` must be bool, uint8, .*; got int8"),
    ((X, T), {"beta": -1.0}, ValueError, "`beta` must lie in 0 to 1e\\+30; got -1.0"),
    ((X, T), {"reduction": "avg"}, ValueError, "`reduction` must be one of 'none', 'mean', 'sum'; got 'avg'"),
    ((X, T), {"mask": torch.ones(3).bool()}, ValueError, r"`mask` must be .*; got \[3\]"),
    ((X.double(), T), {"backend": "cpp"}, backends.BackendError, "backend 'cpp' cannot run `regression`: "),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD, ids=[case[3][:40] for case in BAD])
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.smooth_l1_loss(*arguments, **options)
