"""ExcessMTL against a loop over elements, over several steps and a warm-up."""

from __future__ import annotations

import pytest
import torch
from helpers import textbook
from helpers.loop import Model, inputs, losses_of

from fastmtl import balance


def rows_of(model: Model, losses: dict[str, torch.Tensor]) -> torch.Tensor:
    shared = list(model.encoder.parameters())
    flat = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses.values()]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in flat])


@pytest.mark.parametrize("warmup", [1, 3])
@pytest.mark.parametrize("scale", [None, 64.0])
def test_equals_its_loop(warmup, scale):
    model, balancer, history = Model(), balance.ExcessMTL(0.7, warmup=warmup), []
    baseline, alpha = torch.zeros(3).double(), torch.ones(3).double()
    for seed in range(6):
        losses = losses_of(model, inputs(seed=seed))
        history.append(rows_of(model, losses))
        model.zero_grad()
        log = balancer.backward(losses, model.encoder.parameters(), scale=scale)
        excess = textbook.excess_risks(history)
        if seed < warmup:
            baseline += excess / warmup
        else:
            alpha = alpha * torch.exp(0.7 * excess / baseline)
            alpha = 3 * alpha / alpha.sum()
        torch.testing.assert_close(log["weights"], alpha, rtol=1e-9, atol=0)
        found = torch.cat([p.grad.flatten() for p in model.encoder.parameters()])
        torch.testing.assert_close(found, (scale or 1.0) * (alpha @ history[-1]), rtol=1e-9, atol=1e-12)
    assert (alpha - 1).abs().max() > 0.01


def test_it_begins_anew_when_parameters_freeze_and_keeps_its_weights():
    model, balancer = Model(), balance.ExcessMTL(1.0)
    for seed in range(3):
        log = balancer.backward(losses_of(model, inputs(seed=seed)), model.encoder.parameters())
    model.encoder[0].requires_grad_(False)
    after = balancer.backward(losses_of(model, inputs()), model.encoder.parameters())
    torch.testing.assert_close(after["weights"], log["weights"])
    assert balancer.state_dict()["seen"].tolist() == [1.0] * 3


def test_a_task_first_labelled_later_has_its_own_warm_up():
    model, balancer = Model(), balance.ExcessMTL(1.0)
    for seed in range(3):
        losses = losses_of(model, inputs(seed=seed))
        losses["b"] = losses["b"] * 0
        balancer.backward(losses, model.encoder.parameters())
    before = balancer.state_dict()
    assert before["seen"].tolist() == [1.0, 0.0, 1.0]
    balancer.backward(losses_of(model, inputs()), model.encoder.parameters())
    after = balancer.state_dict()
    assert after["seen"].tolist() == [1.0] * 3
    assert after["logs"][1] == 0
    assert (after["logs"][[0, 2]] > before["logs"][[0, 2]]).all()


def test_gradients_whose_squares_overflow_do_not_stay_in_the_sums():
    model, balancer = Model(torch.float32), balance.ExcessMTL(1.0)
    for seed, size in ((0, 1.0), (1, 1e25), (2, 1.0)):
        losses = {name: size * loss for name, loss in losses_of(model, inputs(torch.float32, seed=seed)).items()}
        log = balancer.backward(losses, model.encoder.parameters())
        assert log["weights"].isfinite().all()
    assert balancer.state_dict()["squares"].isfinite().all()
