"""`ops.pcgrad_weights`: the textbook loop over full gradients, on K x K numbers."""

from __future__ import annotations

import pytest
import torch
from helpers.gradients import gradients, near_opposed, orders, textbook_pcgrad
from helpers.op_backends import BACKENDS, device_of, needs_cpp
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmtl import ops
from fastmtl.ops.gradients.pcgrad import random_order


def weights(G: torch.Tensor, order: torch.Tensor, backend: str = "auto", **options) -> torch.Tensor:
    device = device_of(backend)
    return ops.pcgrad_weights(G.to(device), order.to(device), backend=backend, **options).cpu()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("K", [1, 2, 3, 8, 64])
def test_equals_the_textbook_loop(K, backend, poisoned_memory):
    J = gradients(K, 200, dtype=torch.float64, seed=K)
    order = orders(K)
    expected = textbook_pcgrad(J, order)
    w = weights(ops.gram(J, backend="reference"), order, backend)
    error = (w @ J - expected).abs().max() / expected.abs().max()
    assert error < (2e-15 if K <= 8 else 1e-13)


@needs_cpp
@settings(max_examples=60, deadline=None)
@given(
    K=st.integers(1, 10),
    rank=st.integers(1, 10),
    scale=st.sampled_from([1e-15, 1e-3, 1.0, 1e6, 1e15]),
    seed=st.integers(0, 10_000),
)
def test_matrices_by_rank_and_scale(K, rank, scale, seed):
    """Equal to the loop in float64; scaling the gradients keeps w; permuting the tasks permutes w."""
    J = gradients(K, 50, rank=rank, scale=scale, dtype=torch.float64, seed=seed)
    order = orders(K, seed)
    G = J @ J.T
    w = weights(G, order, "cpp")
    # With dependent gradients an inner product that should be zero has either sign, and adds a term of its size.
    size = J.abs().max() * K
    assert (w @ J - textbook_pcgrad(J, order)).abs().max() <= 1e-9 * size * (1 + w.abs().max())

    assert torch.equal(weights(G * 2.0**20, order, "cpp"), w)

    renamed = torch.randperm(K, generator=torch.Generator().manual_seed(seed))  # new task n was task renamed[n]
    place = renamed.argsort()
    torch.testing.assert_close(
        weights(G[renamed][:, renamed].contiguous(), place[order[renamed]], "cpp"), w[renamed], rtol=1e-6, atol=1e-6
    )


def test_same_distribution_as_torchjd():
    """TorchJD draws orders itself: the means over many orders must agree."""
    torchjd = pytest.importorskip("torchjd.aggregation", reason="torchjd is not installed")
    J = gradients(4, 6, dtype=torch.float64, seed=3)
    G = J @ J.T
    assert (G < 0).any()
    torch.manual_seed(0)
    theirs = torch.stack([torchjd.PCGrad()(J) for _ in range(400)])
    source = torch.Generator().manual_seed(0)
    ours = torch.stack([ops.pcgrad_weights(G, generator=source) @ J for _ in range(400)])
    error = (theirs.mean(0) - ours.mean(0)).abs()
    assert (error <= 5 * (theirs.std(0) + ours.std(0)) / 400**0.5 + 1e-12).all()


def test_equals_torchjd_where_the_order_does_not_matter():
    torchjd = pytest.importorskip("torchjd.aggregation", reason="torchjd is not installed")
    J = gradients(2, 30, dtype=torch.float64, seed=1)
    J[1] -= 3 * J[0]
    torch.testing.assert_close(ops.combine(J, ops.pcgrad_weights(ops.gram(J))), torchjd.PCGrad()(J), rtol=1e-14, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sum_is_the_sum_and_mean_the_mean(backend):
    """Pytorch-PCGrad's "sum" returns the mean."""
    J = torch.eye(3, dtype=torch.float64)  # no conflict: the plain sum
    G, order = ops.gram(J), orders(3)
    assert torch.equal(weights(G, order, backend), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(
        weights(G, order, backend, reduction="mean"), torch.full((3,), 1 / 3, dtype=torch.float64)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_task_is_not_projected_against_itself(backend):
    """LibMTL and Pytorch-PCGrad do it: after a projection beyond its own normal plane g_i then vanishes."""
    J = torch.tensor([[1.0, 0.0], [-10.0, 1.0], [-10.0, -1.0]], dtype=torch.float64)
    with_self = torch.tensor([[1, 2, 0], [0, 2, 1], [0, 1, 2]])
    without = torch.tensor([[1, 2], [0, 2], [0, 1]])
    G = ops.gram(J)
    assert torch.equal(weights(G, with_self, backend), weights(G, without, backend))
    torch.testing.assert_close(weights(G, without, backend) @ J, textbook_pcgrad(J, without))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_partner_is_the_original_gradient(backend):
    J = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    order = torch.tensor([[1], [0]])
    expected = torch.tensor([0.5, 0.5], dtype=torch.float64) + torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(weights(ops.gram(J), order, backend) @ J, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_rows_are_inactive(backend):
    J = gradients(4, 30, dtype=torch.float64, seed=5)
    J[1] = 0
    order = orders(4)
    G = ops.gram(J)
    w = weights(G, order, backend)
    active = [0, 2, 3]
    place = {task: n for n, task in enumerate(active)}
    inner = torch.tensor([[place[j] for j in order[i].tolist() if j != 1] for i in active])
    alone = weights(ops.gram(J[active]), inner, backend)
    torch.testing.assert_close(w[active], alone, rtol=1e-14, atol=0)
    torch.testing.assert_close(weights(G, order, backend, reduction="mean")[active], alone / 3, rtol=1e-14, atol=0)
    nothing = weights(torch.zeros(3, 3, dtype=torch.float64), orders(3), backend, reduction="mean")
    assert torch.isfinite(nothing).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # from NumPy, in Triton's interpreter
def test_what_is_not_finite_shows(value, backend):
    G = torch.eye(3, dtype=torch.float64)
    G[0, 1] = G[1, 0] = value
    assert not torch.isfinite(weights(G, orders(3), backend)).any()


@needs_cpp
def test_near_opposed_gradients_need_a_float64_gram():
    """The clip norm is sqrt(w^T G w) of the update: correct with a float64 G, wrong with a float32 one."""
    J = near_opposed(50_000, 1e-5)
    order = orders(2)
    exact = textbook_pcgrad(J.double(), order)
    G = ops.gram(J)
    w = ops.pcgrad_weights(G, order)
    assert (w @ J.double() - exact).norm() < 1e-4 * exact.norm()
    assert abs(w @ G @ w / exact.square().sum() - 1) < 1e-3
    narrow = (J @ J.T).double()
    w = ops.pcgrad_weights(narrow, order)
    assert abs(w @ narrow @ w / exact.square().sum() - 1) > 1


def test_random_orders():
    source = torch.Generator().manual_seed(7)
    drawn = torch.stack([random_order(4, generator=source) for _ in range(600)])
    assert drawn.shape == (600, 4, 3)
    for i in range(4):
        others = torch.tensor([j for j in range(4) if j != i])
        assert torch.equal(drawn[:, i].sort(dim=1).values, others.expand(600, 3))
        first = torch.stack([(drawn[:, i, 0] == j).double().mean() for j in others.tolist()])
        assert (first - 1 / 3).abs().max() < 0.1
    assert random_order(1).shape == (1, 0)
    again = torch.Generator().manual_seed(7)
    assert torch.equal(random_order(4, generator=again), drawn[0])


def test_opcheck_and_whole_compile():
    G, order = ops.gram(gradients(3, 40)), orders(3)
    torch.library.opcheck(torch.ops.fastmtl.pcgrad_weights.default, (G, order, True, "auto"))

    def step(J, order):
        return ops.combine(J, ops.pcgrad_weights(ops.gram(J), order))

    J = gradients(3, 40)
    torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="aot_eager")(J, order), step(J, order))


@pytest.mark.parametrize(
    ("G", "order", "options", "message"),
    [
        (torch.ones(2, 3).double(), None, {}, r"must be \[K, K\]"),
        (torch.ones(65, 65).double(), None, {}, "1 to 64"),
        (torch.eye(3, dtype=torch.int64), None, {}, "must be floating point"),
        (torch.eye(3).double(), torch.zeros(3, 2), {}, "`order` must be int64"),
        (torch.eye(3).double(), torch.zeros(2, 2, dtype=torch.int64), {}, r"\[3, 2\]"),
        (torch.eye(3).double(), torch.full((3, 2), 3), {}, "must be a permutation of the tasks 0 to 2"),
        (torch.eye(3).double(), torch.full((3, 2), -1), {}, "must be a permutation of the tasks 0 to 2"),
        (torch.eye(3).double(), None, {"reduction": "max"}, "`reduction`"),
    ],
)
def test_errors(G, order, options, message):
    with pytest.raises(ValueError, match=message):
        ops.pcgrad_weights(G, order, **options)


@pytest.mark.parametrize("backend", BACKENDS[::2])
def test_an_order_outside_gives_nan_where_no_error_can_be_raised(backend):
    assert weights(torch.eye(3).double(), torch.full((3, 2), 3), backend).isnan().all()
