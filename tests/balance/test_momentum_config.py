"""Momentum ConFIG against its algorithm on full gradients."""

from __future__ import annotations

import pytest
import torch
from helpers import textbook
from helpers.loop import Model, inputs, losses_of

from fastmtl import balance


def run(balancer: balance.MomentumConFIG, steps: int, scale: float | None) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The gradients of each step at the same parameters, and the last update."""
    model, history = Model(), []
    shared = list(model.encoder.parameters())
    for seed in range(steps):
        losses = losses_of(model, inputs(seed=seed))
        flat = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses.values()]
        history.append(torch.stack([torch.cat([g.flatten() for g in row]) for row in flat]))
        model.zero_grad()
        balancer.backward(losses, shared, scale=scale)
    return history, torch.cat([p.grad.flatten() for p in shared])


@pytest.mark.parametrize("scale", [None, 64.0])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_equals_its_algorithm(steps, scale):
    history, found = run(balance.MomentumConFIG(0.8, 0.95), steps, scale)
    expected = textbook.momentum_config(history, 0.8, 0.95, 1e-8)
    torch.testing.assert_close(found, (scale or 1.0) * expected, rtol=1e-7, atol=1e-9)


def test_without_momentum_it_is_config():
    history, found = run(balance.MomentumConFIG(0.0, None), 3, None)
    torch.testing.assert_close(found, textbook.config_grad(history[-1]), rtol=1e-8, atol=1e-11)


def test_without_a_second_moment_it_is_config_of_adams_first_moments():
    history, found = run(balance.MomentumConFIG(0.8, None), 4, None)
    m = sum(0.2 * 0.8**age * J for age, J in enumerate(reversed(history))) / (1 - 0.8**4)
    torch.testing.assert_close(found, textbook.config_grad(m), rtol=1e-8, atol=1e-11)


def test_the_second_moment_begins_anew_when_parameters_freeze():
    model, balancer = Model(), balance.MomentumConFIG()
    for seed in range(3):
        balancer.backward(losses_of(model, inputs(seed=seed)), model.encoder.parameters())
    assert balancer.state_dict()["moves"] == 3
    model.encoder[0].requires_grad_(False)
    balancer.backward(losses_of(model, inputs()), model.encoder.parameters())
    state = balancer.state_dict()
    assert state["moves"] == 1
    assert state["steps"].tolist() == [1.0] * 3


def test_a_step_without_labels_does_not_move_the_second_moment():
    model, balancer = Model(), balance.MomentumConFIG()
    balancer.backward(losses_of(model, inputs()), model.encoder.parameters())
    before = balancer.state_dict()
    losses = {name: 0 * loss for name, loss in losses_of(model, inputs()).items()}
    balancer.backward(losses, model.encoder.parameters(), active=torch.zeros(3, dtype=torch.bool))
    after = balancer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in ("average", "steps", "moves", "pseudo", "square"))


def test_gradients_whose_squares_overflow_do_not_stop_their_elements():
    model, balancer = Model(torch.float32), balance.MomentumConFIG(0.0, 0.5)
    for seed, size in ((0, 1.0), (1, 1e25), *((seed, 1e20) for seed in range(2, 9))):
        losses = {name: size * loss for name, loss in losses_of(model, inputs(torch.float32, seed=seed)).items()}
        model.zero_grad()
        balancer.backward(losses, model.encoder.parameters())
        update = torch.cat([p.grad.flatten() for p in model.encoder.parameters()])
        assert update.isfinite().all()
        assert (update != 0).any()
    assert balancer.state_dict()["square"].isfinite().all()
