"""Every gradient method against its textbook on full gradients and its own conditions of optimality."""

from __future__ import annotations

import pytest
import torch
from helpers import textbook
from helpers.gradients import gradients, near_opposed, orders
from helpers.gram_weights import DOUBLE, weights
from helpers.op_backends import ignore_numpy_warnings, needs_interpreter, needs_triton
from helpers.triton_checks import checked
from torch import Tensor

from fastmtl import balance
from fastmtl.balance import graddrop
from fastmtl.balance.draws import Draws
from fastmtl.balance.graddrop import drop
from fastmtl.balance.gradvac import vaccinate


def update(method: str, J: Tensor, **options) -> Tensor:
    return weights(method, J @ J.T, **options) @ J


@pytest.mark.parametrize("method", ["mgda", "upgrad", "imtl_g", "aligned_mtl", "config_grad"])
@pytest.mark.parametrize("K", [2, 3, 4])
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_equals_the_textbook(method, K, scale):
    for seed in range(4):
        J = gradients(K, 20, scale=scale, seed=seed, **DOUBLE)
        expected = getattr(textbook, method)(J)
        assert (update(method, J) - expected).norm() < 1e-7 * max(expected.norm(), J.norm())


@pytest.mark.parametrize("method", ["mgda", "upgrad"])
def test_dependent_gradients(method):
    for seed in range(4):
        J = gradients(4, 20, rank=2, seed=seed, **DOUBLE)
        assert (update(method, J) - getattr(textbook, method)(J)).norm() < 1e-6 * J.norm()


def certify_cagrad(J: Tensor, w: Tensor, c: float) -> None:
    """d = J^T w maximises min_i <g_i, d> over the ball of radius c |g0| around g0: the conditions of optimality."""
    d, mean = w @ J, J.mean(0)
    extra = w - 1 / len(J)
    products = J @ d
    scale = J.norm() ** 2
    assert extra.min() > -1e-9 * extra.abs().max()
    assert (d - mean).norm().item() == pytest.approx(c * mean.norm().item(), rel=1e-6)
    worst = products.min()
    slack = (extra / extra.sum()) * (products - worst)
    assert slack.abs().max() < 1e-7 * scale


@pytest.mark.parametrize("c", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("K", [2, 3, 8])
def test_cagrad_is_the_best_direction_in_its_ball(K, c):
    for seed in range(6):
        J = gradients(K, 40, seed=seed, **DOUBLE)
        certify_cagrad(J, weights("cagrad", J @ J.T, c=c), c)


def test_cagrad_options():
    J = gradients(3, 20, seed=1, **DOUBLE)
    w = weights("cagrad", J @ J.T, c=0.5)
    torch.testing.assert_close(weights("cagrad", J @ J.T, c=0.5, rescale="square"), w / 1.25)
    torch.testing.assert_close(weights("cagrad", J @ J.T, c=0.5, rescale="linear"), w / 1.5)
    torch.testing.assert_close(weights("cagrad", J @ J.T, c=0.0), torch.full((3,), 1 / 3, **DOUBLE))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_fairgrad_and_nash_solve_their_equations(alpha, scale):
    for seed in range(5):
        J = gradients(4, 40, scale=scale, seed=seed, **DOUBLE)
        w = weights("fairgrad", J @ J.T, alpha=alpha)
        assert (w > 0).all()
        torch.testing.assert_close(J @ (w @ J), w ** (-1 / alpha), rtol=1e-6, atol=0)
    J = gradients(4, 40, scale=scale, seed=4, **DOUBLE)
    w = weights("nash_mtl", J @ J.T, max_norm=None)
    torch.testing.assert_close(J @ (w @ J), 1 / w, rtol=1e-6, atol=0)
    assert (w @ J).norm().item() == pytest.approx(2.0)  # the square is K
    assert update("nash_mtl", J).norm().item() == pytest.approx(1.0)


@pytest.mark.parametrize("always", [True, False])
@pytest.mark.parametrize("K", [2, 4])
def test_gradvac_equals_its_loop_and_carries_its_targets(K, always):
    target, expected = torch.zeros(K, K, **DOUBLE), torch.zeros(K, K, **DOUBLE)
    for step in range(5):
        J = gradients(K, 12, seed=step, **DOUBLE)
        order = orders(K, step)
        w, target = vaccinate(J @ J.T, order, target, 0.3, always)
        wanted = textbook.gradvac(J, order, expected, 0.3, always)
        assert (w @ J - wanted).norm() < 1e-11 * wanted.norm()
        torch.testing.assert_close(target, expected, rtol=1e-11, atol=1e-13)
    assert (target != 0).any()


@pytest.mark.parametrize("weighted", [False, True])
def test_du_gate(weighted):
    for seed in range(4):
        J = gradients(4, 10, seed=seed, **DOUBLE)
        torch.testing.assert_close(update("du_gate", J, weighted=weighted), textbook.du_gate(J, weighted))
    J = gradients(4, 10, seed=3, **DOUBLE)
    named = balance.DuGate("b").weights(J @ J.T, dict.fromkeys("abcd", torch.ones(())))
    assert named[1] == 1.0
    with pytest.raises(ValueError, match="`main` must be one of the tasks"):
        balance.DuGate("z").weights(J @ J.T, dict.fromkeys("abcd", torch.ones(())))


@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_graddrop_equals_its_loop(leak):
    J = gradients(3, 50, seed=2, **DOUBLE)
    u = Draws(0).uniform(50, J.device)
    dropped = drop(J, torch.ones(3, **DOUBLE), torch.full((3,), leak, **DOUBLE), u)
    torch.testing.assert_close(dropped.sum(0), textbook.graddrop(J, u, leak))


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_graddrop_in_one_kernel_is_graddrop(dtype):
    """Two blocks and a part, one inactive task; the same draws, from a later place of a split arena."""
    J = gradients(4, 2500, seed=2, dtype=torch.float64).to(dtype)
    w, leak = torch.tensor([1.0, 2.0, 0.0, 0.5], **DOUBLE), torch.tensor([0.0, 0.3, 1.0, 0.0], **DOUBLE)
    step, seed = Draws(3).source(J.device)
    expected = graddrop._graddrop(J.double(), w, leak, step, seed, 4096)
    with checked(0):
        found = graddrop._graddrop_triton(J, w, leak, step, seed, 4096)
    assert found[0].dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(found[0].double(), expected[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5)


def test_sdmgrad_equals_its_loop():
    balancer, v = balance.SDMGrad(), torch.full((3,), 1 / 3, **DOUBLE)
    for seed in range(4):
        J = gradients(3, 9, seed=seed, **DOUBLE)
        A = J @ (J + 0.3 * J.roll(1, 1)).T  # not symmetric
        w, v = textbook.sdmgrad(A, v, 0.3, 10.0, 0.5, 20)
        torch.testing.assert_close(balancer.weights(A, {}), w, rtol=1e-9, atol=1e-12)


# Errors of the anchors


def test_a_float32_gram_fails_mgda_on_near_opposed_gradients():
    J = near_opposed(50_000, 1e-5)
    exact = textbook.mgda(J.double())
    assert (weights("mgda", J.double() @ J.double().T) @ J.double() - exact).norm() < 1e-4 * exact.norm()
    narrow = (J @ J.T).double()
    assert abs(weights("mgda", narrow) @ narrow @ weights("mgda", narrow) / exact.square().sum() - 1) > 0.01


def test_mgda_and_cagrad_do_not_stop_at_a_task_without_labels():
    J = gradients(4, 20, seed=0, **DOUBLE)
    J[2] = 0
    assert update("mgda", J).norm() > 0
    assert update("cagrad", J).norm() > 0


def test_cagrad_at_a_stationary_point_is_0():
    J = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], **DOUBLE)
    assert weights("cagrad", J @ J.T).tolist() == [0.0, 0.0]
    J = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]], **DOUBLE)
    assert weights("cagrad", J @ J.T).abs().max() == 0


def test_imtl_gs_rank_tolerance_bounds_its_weights():
    J = torch.ones(3, 6, **DOUBLE) + 1e-4 * gradients(3, 6, seed=1, **DOUBLE)
    free, bounded = (weights("imtl_g", J @ J.T, rtol=rtol) for rtol in (None, 1e-6))
    assert free.abs().max() > 5
    assert free.min() < 0
    assert bounded.abs().max() < 0.5
    assert bounded.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("method", "options", "argument"),
    [
        ("aligned_mtl", {"scale": "max"}, "scale"),
        ("aligned_mtl", {"rtol": -1.0}, "rtol"),
        ("cagrad", {"c": -0.1}, "c"),
        ("cagrad", {"rescale": "cube"}, "rescale"),
        ("constant", {"weight": -1.0}, "weight"),
        ("db_mtl", {"beta": 2.0}, "beta"),
        ("dwa", {"temperature": 0.0}, "temperature"),
        ("excess_mtl", {"lr": 0.0}, "lr"),
        ("excess_mtl", {"warmup": 0}, "warmup"),
        ("fairgrad", {"alpha": 0.0}, "alpha"),
        ("famo", {"lr": -1.0}, "lr"),
        ("go4align", {"groups": 0}, "groups"),
        ("go4align", {"lr": -1.0}, "lr"),
        ("graddrop", {"leak": 2.0}, "leak"),
        ("gradnorm", {"alpha": -1.0}, "alpha"),
        ("gradnorm", {"exponent": 2}, "exponent"),
        ("gradvac", {"beta": 1.5}, "beta"),
        ("mgda", {"normalization": "l1"}, "normalization"),
        ("moco", {"gamma": -1.0}, "gamma"),
        ("modo", {"lr": 0.0}, "lr"),
        ("modo", {"rho": -0.1}, "rho"),
        ("momentum_config", {"beta1": 1.0}, "beta1"),
        ("momentum_config", {"beta2": 1.0}, "beta2"),
        ("momentum_config", {"rtol": -1.0}, "rtol"),
        ("nash_mtl", {"max_norm": 0.0}, "max_norm"),
        ("sdmgrad", {"momentum": 1.0}, "momentum"),
        ("stch", {"mu": 0.0}, "mu"),
        ("stch", {"warmup": -1}, "warmup"),
        ("uncertainty", {"forms": "ranking"}, "forms"),
        ("uncertainty", {"log": "sigma"}, "log"),
    ],
)
def test_options_out_of_range(method, options, argument):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        balance.create_balancer(method, **options)


@pytest.mark.parametrize("method", ["aligned_mtl", "config_grad", "momentum_config", "upgrad", "sdmgrad"])
def test_given_weights_are_of_the_tasks(method):
    J = gradients(2, 8, seed=0, **DOUBLE)
    losses = {"a": torch.ones(()), "b": torch.ones(())}
    by_name = balance.create_balancer(method, weights={"b": 2.0, "a": 1.0}).weights(J @ J.T, losses)
    in_order = balance.create_balancer(method, weights=[1.0, 2.0]).weights(J @ J.T, losses)
    assert torch.equal(by_name, in_order)
    with pytest.raises(ValueError, match="must name the tasks"):
        balance.create_balancer(method, weights={"a": 1.0}).weights(J @ J.T, losses)
    with pytest.raises(ValueError, match="one weight per task, 2"):
        balance.create_balancer(method, weights=[1.0]).weights(J @ J.T, losses)


@needs_triton
@ignore_numpy_warnings
@pytest.mark.long
@pytest.mark.parametrize("K", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_cagrad_on_a_gpu_is_the_same_search(K):
    from fastmtl.kernels import cagrad_triton

    J = torch.randn(K, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(K))
    for rows, c in ((J - 0.9 * J.mean(0), 0.4), (J - J.mean(0), 0.5)):
        G, options = rows @ rows.T, torch.tensor([c, 1.0, 1e-6], dtype=torch.float64)
        torch.testing.assert_close(cagrad_triton.cagrad(G, options, 24), weights("cagrad", G, c=c), rtol=0, atol=1e-12)
    G[0, 0] = torch.nan
    assert cagrad_triton.cagrad(G, options, 24).isnan().all()


@needs_triton
@ignore_numpy_warnings
@pytest.mark.parametrize("K", [1, 2, 5])
def test_sdmgrad_on_a_gpu_is_the_same_descent(K):
    from fastmtl.balance.sdmgrad import _descend
    from fastmtl.kernels import sdmgrad_triton

    source = torch.Generator().manual_seed(K)
    for active in (torch.ones(K, dtype=torch.bool), torch.arange(K) != 1, torch.zeros(K, dtype=torch.bool)):
        J = torch.randn(K, 20, generator=source, **DOUBLE) * active[:, None]
        for start in (active / active.sum().clamp(min=1), torch.rand(K, generator=source)):
            arguments = J @ J.T / 20, 0.3 * active.double(), active, start.double(), 1.0, 0.5, 20
            found, exact = sdmgrad_triton.descend(*arguments), _descend(*arguments)
            torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)
            assert bool((found > 0).any()) == bool(active.any())
