"""Balancers without the trainer: PCGrad and linear scalarisation, their errors, their state, their names."""

from __future__ import annotations

import pickle
from copy import deepcopy

import pytest
import torch
from helpers.loop import Model, expected_gradients, first_order, flat_gradient, inputs, loss_of
from torch import nn

from fastmtl import balance


def test_two_lines_in_any_loop():
    model, x = Model(), inputs()
    balancer = balance.PCGrad()
    expected, heads = expected_gradients(model, x, first_order(balancer))
    log = balancer.backward(model.losses(x), shared=model.encoder.parameters())
    torch.testing.assert_close(flat_gradient(model), expected, rtol=1e-13, atol=1e-15)
    for name, head in model.heads.items():
        for parameter, gradient in zip(head.parameters(), heads[name], strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-13, atol=1e-15)
    assert {name: (value.shape, value.dtype) for name, value in log.items()} == {
        "weights": ((3,), torch.float64),
        "norms": ((3,), torch.float64),
        "cosines": ((3, 3), torch.float64),
    }
    assert (log["cosines"] < 0).any()
    torch.testing.assert_close(log["cosines"].diagonal(), torch.ones(3, dtype=torch.float64))
    assert not any(value.requires_grad for value in log.values())


def test_mean_divides_by_the_tasks():
    model, x = Model(), inputs()
    balance.PCGrad().backward(model.losses(x), model.encoder.parameters())
    total = flat_gradient(model).clone()
    model.zero_grad()
    balance.PCGrad("mean").backward(model.losses(x), model.encoder.parameters())
    torch.testing.assert_close(flat_gradient(model), total / 3)


def test_weights_alone():
    G = torch.tensor([[1.0, -1.0], [-1.0, 4.0]], dtype=torch.float64)
    assert balance.PCGrad().weights(G, {}).tolist() == [2.0, 1.25]


@pytest.mark.parametrize("scale", [1024.0, torch.tensor(1024.0)])
def test_a_grad_scaler_scales_gradients_and_not_what_is_logged(scale):
    model, x = Model(), inputs()
    plain = balance.PCGrad().backward(model.losses(x), model.encoder.parameters())
    gradient = flat_gradient(model).clone()
    model.zero_grad()
    scaled = balance.PCGrad().backward(model.losses(x), model.encoder.parameters(), scale=scale)
    assert torch.equal(flat_gradient(model), gradient * 1024)
    for name, value in plain.items():
        assert torch.equal(scaled[name], value)


def test_overflow_reaches_every_shared_gradient():
    """The GradScaler then detects it and skips the step."""
    model = Model(torch.float32)
    losses = model.losses(inputs(torch.float32))
    losses["b"] = losses["b"] * float("inf")
    balance.PCGrad().backward(losses, model.encoder.parameters())
    assert all(p.grad.isnan().all() for p in model.encoder.parameters())


@pytest.mark.parametrize("K", [1, 2, 8])
def test_training_goes_on(K):
    torch.manual_seed(0)
    encoder, heads = nn.Linear(4, 8), nn.ModuleList(nn.Linear(8, 1) for _ in range(K))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=0.05)
    x, y, balancer = torch.randn(32, 4), torch.randn(32, K), balance.PCGrad()
    first = last = 0.0
    for _ in range(60):
        z = encoder(x).tanh()
        losses = {f"task{k}": (head(z)[:, 0] - y[:, k]).square().mean() for k, head in enumerate(heads)}
        last = sum(loss.item() for loss in losses.values())
        first = first or last
        optimizer.zero_grad()
        balancer.backward(losses, shared=encoder.parameters())
        optimizer.step()
    assert last < 0.8 * first


def test_the_rest_of_the_protocol():
    for balancer in (balance.PCGrad(), balance.Linear()):
        assert balancer.after_step(dict) is None
        assert list(balancer.parameters()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda losses, w: losses | {"cls": w * 2}, r"`losses\['cls'\]` must be a scalar tensor; got \[3\]"),
        (lambda losses, w: losses | {"cls": 1.0}, r"`losses\['cls'\]` must be a scalar tensor; got float"),
        (lambda losses, w: losses | {"cls": w.sum().detach()}, r"`losses\['cls'\]` must have a graph"),
        (lambda losses, w: {}, "no loss"),
        (lambda losses, w: list(losses.values()), "got list"),
    ],
)
@pytest.mark.parametrize("method", ["pcgrad", "linear"])
def test_errors_about_losses(method, change, message):
    w = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=message):
        balance.create_balancer(method).backward(change(loss_of(w), w), [w])


@pytest.mark.parametrize("method", ["pcgrad", "linear"])
def test_tasks_may_not_change(method):
    w = nn.Parameter(torch.ones(3))
    balancer = balance.create_balancer(method)
    balancer.backward(loss_of(w), [w])
    for losses in ({"seg": w.sum()}, dict(reversed(loss_of(w).items())), loss_of(w) | {"new": w.sum()}):
        with pytest.raises(ValueError, match=r"must have the tasks \['seg', 'cls'\]"):
            balancer.backward(losses, [w])


def test_linear_is_one_weighted_backward():
    model, x = Model(), inputs()
    given = {"c": 0.5, "a": 2.0, "b": 1.0}
    log = balance.Linear(given).backward(model.losses(x), model.encoder.parameters())
    assert log["weights"].tolist() == [2.0, 1.0, 0.5]
    losses = model.losses(x)
    total = 2 * losses["a"] + losses["b"] + losses["c"] / 2
    parameters = [p for p in model.parameters() if p.grad is not None]
    for parameter, gradient in zip(parameters, torch.autograd.grad(total, parameters), strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_linear_weights():
    w = nn.Parameter(torch.ones(3))
    assert balance.Linear().backward(loss_of(w), [w])["weights"].tolist() == [1.0, 1.0]
    assert balance.Linear([3, 4]).backward(loss_of(w), [w], scale=2.0)["weights"].tolist() == [3.0, 4.0]
    with pytest.raises(ValueError, match="must name the tasks"):
        balance.Linear({"seg": 1.0}).backward(loss_of(w), [w])
    with pytest.raises(ValueError, match="one weight per task"):
        balance.Linear([1.0]).backward(loss_of(w), [w])


def test_create_balancer():
    assert isinstance(balance.create_balancer("pcgrad", reduction="mean", seed=4), balance.PCGrad)
    assert isinstance(balance.create_balancer("linear", weights=[1.0, 2.0]), balance.Linear)
    assert {"linear", "pcgrad"} <= set(balance.list_balancers())
    with pytest.raises(ValueError, match="did you mean 'pcgrad'"):
        balance.create_balancer("pc_grad")
    with pytest.raises(ValueError, match="`reduction`"):
        balance.create_balancer("pcgrad", reduction="max")
    with pytest.raises(ValueError, match="no option 'redcution'; did you mean 'reduction'"):
        balance.create_balancer("pcgrad", redcution="sum")


@pytest.mark.parametrize("spoil", ["graphless", "empty", "frozen"])
def test_a_failed_call_drops_the_micro_batches_before_it(spoil):
    model, x = Model(), inputs()
    expected, balancer = balance.PCGrad(), balance.PCGrad()
    expected.backward(model.losses(x), model.encoder.parameters())
    wanted = flat_gradient(model).clone()
    model.zero_grad()
    balancer.backward(model.losses(x), model.encoder.parameters(), last=False)
    first = next(model.encoder.parameters())
    first.requires_grad_(spoil != "frozen")
    losses = {k: v.detach() for k, v in model.losses(x).items()} if spoil == "graphless" else model.losses(x)
    with pytest.raises(ValueError):
        balancer.backward(losses, [] if spoil == "empty" else model.encoder.parameters())
    first.requires_grad_(True)
    model.zero_grad()
    balancer.backward(model.losses(x), model.encoder.parameters())
    torch.testing.assert_close(flat_gradient(model), wanted)


@pytest.mark.parametrize("copy", [deepcopy, lambda made: pickle.loads(pickle.dumps(made))], ids=["deepcopy", "pickle"])
def test_a_copied_balancer_works_on_the_same_model(copy):
    model, x, balancer = Model(), inputs(), balance.PCGrad()
    balancer.backward(model.losses(x), model.encoder.parameters())
    copied = copy(balancer)
    gradients = []
    for one in (balancer, copied):
        model.zero_grad()
        one.backward(model.losses(x), model.encoder.parameters())
        gradients.append(flat_gradient(model).clone())
    assert torch.equal(*gradients)
