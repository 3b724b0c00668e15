"""Properties of every gradient method: finite weights, renamed and scaled tasks, tasks without labels, NaN."""

from __future__ import annotations

import pytest
import torch
from helpers.gradients import gradients, near_opposed, orders
from helpers.gram_weights import DOUBLE, METHODS, weights

from fastmtl import balance
from fastmtl.balance.gradvac import vaccinate

WITH_AN_ORDER = ("pcgrad", "gradvac")
HARD = {
    "full": lambda seed: gradients(4, 30, **DOUBLE, seed=seed),
    "rank 2": lambda seed: gradients(4, 30, rank=2, **DOUBLE, seed=seed),
    "rank 1": lambda seed: gradients(3, 30, rank=1, **DOUBLE, seed=seed),
    "tiny": lambda seed: gradients(3, 30, scale=1e-15, **DOUBLE, seed=seed),
    "huge": lambda seed: gradients(3, 30, scale=1e15, **DOUBLE, seed=seed),
    "near-collinear": lambda seed: near_opposed(50, 1e-5, 1.0, seed).double(),
    "near-opposed": lambda seed: near_opposed(50, 1e-5, -1.0, seed).double(),
    "equal": lambda seed: gradients(1, 30, **DOUBLE, seed=seed).expand(3, -1).contiguous(),
    "opposed": lambda seed: gradients(1, 30, **DOUBLE, seed=seed) * torch.tensor([[1.0], [-1.0]], **DOUBLE),
    "zero": lambda seed: torch.zeros(3, 30, **DOUBLE),
    "one task": lambda seed: gradients(1, 30, **DOUBLE, seed=seed),
}


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("method", METHODS)
def test_weights_are_finite_whatever_the_gradients(method, case):
    for seed in range(2):
        J = HARD[case](seed)
        w = weights(method, J @ J.T)
        assert w.shape == (len(J),)
        assert w.dtype == torch.float64
        assert w.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_renaming_the_tasks_renames_the_weights(method):
    J = gradients(3, 20, seed=3, **DOUBLE)
    place = torch.tensor([0, 2, 1])  # task 0 stays the main task
    if method in WITH_AN_ORDER:
        pytest.skip("the order is drawn by place; pcgrad's own tests rename it too")
    torch.testing.assert_close(weights(method, J[place] @ J[place].T), weights(method, J @ J.T)[place])


# w(s^2 G) = s^power w(G)
POWERS = {"fairgrad": -4 / 3, "moco": None, "modo": None, "nash_mtl": -1.0}


@pytest.mark.parametrize("method", METHODS)
def test_scaling_the_gradients(method):
    power = POWERS.get(method, 0.0)
    if power is None:
        pytest.skip("its step on w is proportional to G")
    J = gradients(4, 20, seed=4, **DOUBLE)
    for scale in (2.0**-40, 2.0**40):
        G = J @ J.T
        torch.testing.assert_close(weights(method, scale**2 * G), scale**power * weights(method, G), rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_task_without_labels_changes_nothing_for_the_others(method, place):
    """As a zero row it would make MGDA and CAGrad return 0, as in other libraries."""
    if method in WITH_AN_ORDER:
        pytest.skip("the order has another shape; see below")
    others = [k for k in range(5) if k != place]
    for seed in range(3):
        J = gradients(5, 20, seed=seed, **DOUBLE)
        alone = weights(method, J[others] @ J[others].T, **({} if method != "du_gate" else {"main": int(place == 0)}))
        J[place] = 0
        w = weights(method, J @ J.T, **({} if method != "du_gate" else {"main": 1 if place != 1 else 0}))
        if method == "du_gate":
            alone = weights(method, J[others] @ J[others].T, main=others.index(1))
        if method == "moco":  # its first w is 1/K with K fixed for the run
            assert w[place] == 0
            assert w.sum().item() == pytest.approx(1.0)
            continue
        assert w[place] == 0
        assert w[others].abs().max() > 0
        torch.testing.assert_close(w[others], alone, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("method", ["gradvac"])
def test_a_task_without_labels_keeps_gradvacs_targets(method):
    J = gradients(3, 20, seed=1, **DOUBLE)
    J[1] = 0
    target = torch.full((3, 3), 0.25, **DOUBLE)
    w, moved = vaccinate(J @ J.T, orders(3), target, 0.5, True)
    assert w[1] == 0
    assert (moved[1] == 0.25).all()
    assert (moved[:, 1] == 0.25).all()
    assert moved[0, 2] != 0.25
    alone, _ = vaccinate(J[[0, 2]] @ J[[0, 2]].T, orders(2), target[:2, :2], 0.5, True)
    torch.testing.assert_close(w[[0, 2]], alone)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [(0, 0), (1, 2), (2, 2)])
def test_what_is_not_finite_shows_in_every_weight(method, value, where):
    J = gradients(3, 20, seed=1, **DOUBLE)
    G = J @ J.T
    G[where] = G[where[::-1]] = value
    assert not weights(method, G).isfinite().any()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "pcgrad"])
def test_a_gram_matrix_is_asked_for(method):
    with pytest.raises(ValueError, match="`G` must be the Gram matrix"):
        balance.create_balancer(method).weights(None, {})
    with pytest.raises(ValueError, match="float64"):
        balance.create_balancer(method).weights(torch.eye(3), {})
