"""MoDo against a loop over its steps, with gradients of different micro-batches."""

from __future__ import annotations

import torch
from helpers import textbook
from helpers.gradients import gradients
from helpers.loop import Model, inputs, losses_of

from fastmtl import balance

DOUBLE = {"dtype": torch.float64}


def test_equals_its_loop():
    balancer, w = balance.MoDo(0.05, rho=0.2), torch.full((3,), 1 / 3, **DOUBLE)
    for seed in range(5):
        J = gradients(3, 9, seed=seed, **DOUBLE)
        A = J @ (J + 0.3 * J.roll(1, 1)).T  # not symmetric
        w = textbook.simplex(w - 0.05 * (A @ w + 0.2 * w))
        torch.testing.assert_close(balancer.weights(A, {}), w, rtol=1e-9, atol=1e-12)
    assert (w - 1 / 3).abs().max() > 0.01


def test_it_takes_the_inner_products_of_different_micro_batches():
    x, rows = inputs(n=8), []
    model, balancer = Model(), balance.MoDo(1.0, rho=0.0)
    shared = list(model.encoder.parameters())
    for number, part in enumerate(x.chunk(2)):
        losses = {name: loss / 2 for name, loss in losses_of(model, part).items()}
        flat = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses.values()]
        rows.append(torch.stack([torch.cat([g.flatten() for g in row]) for row in flat]))
        log = balancer.backward(losses, shared, last=number == 1)
    first, second = (2 * one for one in rows)  # of the whole micro-batches
    A = (first @ second.T + second @ first.T) / 2
    w = textbook.simplex(1 / 3 - A.sum(1) / 3)
    torch.testing.assert_close(log["weights"], w, rtol=1e-9, atol=1e-12)
    found = torch.cat([p.grad.flatten() for p in shared])
    torch.testing.assert_close(found, w @ sum(rows), rtol=1e-9, atol=1e-12)


def test_a_task_without_labels_keeps_its_weight_for_later():
    balancer = balance.MoDo(0.1)
    J = gradients(3, 9, seed=0, **DOUBLE)
    balancer.weights(J @ J.T, {})
    kept = balancer.state_dict()["w"][1]
    J[1] = 0
    w = balancer.weights(J @ J.T, {})
    assert w[1] == 0
    torch.testing.assert_close(w.sum(), torch.ones((), **DOUBLE))
    assert balancer.state_dict()["w"][1] == kept


def test_large_gradients_leave_weights_of_sum_one():
    parameter = torch.nn.Parameter(torch.ones(2))
    losses = {"a": 1e15 * parameter.sum(), "b": 3e15 * parameter.sum(), "c": parameter[0] * 0}
    weights = balance.MoDo().backward(losses, [parameter])["weights"]
    assert weights.tolist() == [1.0, 0.0, 0.0]
