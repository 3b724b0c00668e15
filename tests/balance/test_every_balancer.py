"""Every method in a plain training loop: training, state, micro-batches, loss scales, tasks without labels."""

from __future__ import annotations

import io
from copy import deepcopy

import pytest
import torch
from helpers.loop import Model, inputs, losses_of
from helpers.textbook import simplex

from fastmtl import balance
from fastmtl.balance.replay import Replay

METHODS = balance.list_balancers()
# Their gradients or inner products are of pairs of micro-batches: one batch cannot equal two.
PAIRS = ("modo", "sdmgrad")


def step(balancer, model: Model, optimizer, x: torch.Tensor, **options) -> dict[str, torch.Tensor]:
    again = Replay(model, "cpu")
    optimizer.zero_grad()
    log = balancer.backward(losses_of(model, x), model.encoder.parameters(), **options)
    optimizer.step()
    balancer.after_step(lambda: again(lambda: losses_of(model, x)))
    return log


def make(method: str, dtype=torch.float64, lr: float = 0.02):
    model, balancer = Model(dtype), balance.create_balancer(method)
    return model, balancer, torch.optim.AdamW([*model.parameters(), *balancer.parameters()], lr=lr)


def gradients(model: Model) -> list[torch.Tensor | None]:
    return [p.grad for p in [*model.encoder.parameters(), *model.heads.parameters()]]


@pytest.mark.parametrize("method", METHODS)
def test_it_trains(method):
    model, balancer, optimizer = make(method, torch.float32)
    first = sum(losses_of(model, inputs(torch.float32)).values()).item()
    for epoch in range(4):
        for batch in range(6):
            log = step(balancer, model, optimizer, inputs(torch.float32, seed=batch + 6 * epoch))
            assert log["weights"].shape == (3,)
            assert log["weights"].dtype == torch.float64
            assert not log["weights"].requires_grad
            assert log["weights"].isfinite().all()
        balancer.on_epoch()
    assert sum(losses_of(model, inputs(torch.float32)).values()).item() < 0.8 * first
    assert repr(balancer).startswith(type(balancer).__name__)


@pytest.mark.parametrize("method", METHODS)
def test_state_goes_on_bit_for_bit(method):
    model, balancer, optimizer = make(method)
    for number in range(4):
        step(balancer, model, optimizer, inputs(seed=number))
        if number % 2:
            balancer.on_epoch()
    step(balancer, model, optimizer, inputs(seed=9))  # in the middle of an epoch
    buffer = io.BytesIO()
    torch.save(balancer.state_dict(), buffer)
    buffer.seek(0)
    resumed_model, resumed = deepcopy(model), balance.create_balancer(method)
    resumed.load_state_dict(torch.load(buffer))
    other = torch.optim.AdamW([*resumed_model.parameters(), *resumed.parameters()], lr=0.02)
    other.load_state_dict(deepcopy(optimizer.state_dict()))  # it would share the tensors
    for number in range(5, 9):
        logs = [
            step(b, m, o, inputs(seed=number))
            for b, m, o in ((balancer, model, optimizer), (resumed, resumed_model, other))
        ]
        assert all(torch.equal(logs[0][name], logs[1][name]) for name in logs[0])
        balancer.on_epoch()
        resumed.on_epoch()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed_model.parameters(), strict=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [None, 1024.0, torch.tensor(1024.0)], ids=["plain", "number", "tensor"])
def test_micro_batches_under_a_loss_scale_equal_the_batch(method, scale):
    """Heads included, over two steps, with a task that has labels in one micro-batch alone."""
    if method in PAIRS:
        pytest.skip("micro-batches are what it compares")
    x = inputs(n=8)
    results = []
    for split in (False, True):
        model, balancer, _ = make(method)
        for _ in range(2):
            model.zero_grad()
            parts = [x[:4], x[4:]]
            losses = [{name: loss / 2 for name, loss in losses_of(model, part).items()} for part in parts]
            losses[1]["b"] = losses[1]["b"] * 0
            flags = [torch.tensor([True, True, True]), torch.tensor([True, False, True])]
            if split:
                log = balancer.backward(losses[0], model.encoder.parameters(), scale=scale, last=False, active=flags[0])
                log = balancer.backward(losses[1], model.encoder.parameters(), scale=scale, active=flags[1])
            else:
                total = {name: losses[0][name] + losses[1][name] for name in losses[0]}
                log = balancer.backward(total, model.encoder.parameters())
        factor = float(scale) if split and scale is not None else 1.0
        learned = [parameter.grad / factor for parameter in balancer.parameters()]
        results.append((log["weights"], [*(grad / factor for grad in gradients(model)), *learned]))
    (w, whole), (other, parts) = results
    torch.testing.assert_close(w, other, rtol=1e-8, atol=1e-12)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6 if a.dtype == torch.float32 else 1e-7, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given", [False, True], ids=["by itself", "given"])
def test_a_task_without_labels(method, given):
    """It has no weight and no gradient, and takes part in the next step as usual."""
    model, balancer, optimizer = make(method)
    step(balancer, model, optimizer, inputs())
    model.zero_grad()
    losses = losses_of(model, inputs(seed=2))
    losses["b"] = losses["b"] * 0
    active = torch.tensor([True, False, True]) if given else None
    log = balancer.backward(losses, model.encoder.parameters(), active=active)
    assert log["weights"].isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(model))
    assert all((p.grad == 0).all() for p in model.heads["b"].parameters())
    if given:
        assert log["weights"][1] == 0
    assert (log["weights"][[0, 2]] != 0).any()
    balancer.after_step(lambda: losses_of(model, inputs(seed=2)))
    assert step(balancer, model, optimizer, inputs(seed=3))["weights"].isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_no_labels_at_all(method):
    model, balancer, optimizer = make(method)
    losses = {name: 0 * loss for name, loss in losses_of(model, inputs()).items()}
    balancer.backward(losses, model.encoder.parameters(), active=torch.zeros(3, dtype=torch.bool))
    assert all((gradient == 0).all() for gradient in gradients(model))
    balancer.after_step(lambda: {name: 0 * loss for name, loss in losses_of(model, inputs()).items()})
    assert step(balancer, model, optimizer, inputs(seed=3))["weights"].isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_a_skipped_step_leaves_no_trace(method):
    """A NaN loss reaches every shared gradient, so that the step is skipped, but not the state."""
    model, balancer, optimizer = make(method)
    step(balancer, model, optimizer, inputs())
    model.zero_grad()
    losses = losses_of(model, inputs(seed=2))
    losses["b"] = losses["b"] * float("nan")
    balancer.backward(losses, model.encoder.parameters())
    assert not any(parameter.grad.isfinite().any() for parameter in model.encoder.parameters())
    balancer.after_step(lambda: losses_of(model, inputs(seed=2)))
    model.zero_grad()
    for parameter in balancer.parameters():
        parameter.grad = None
    for seed in (3, 4):
        assert step(balancer, model, optimizer, inputs(seed=seed))["weights"].isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(model))


@pytest.mark.parametrize("method", METHODS)
def test_active_is_checked(method):
    model, balancer, _ = make(method)
    for wrong in (torch.ones(3), torch.ones(2, dtype=torch.bool), [True] * 3):
        with pytest.raises(ValueError, match="`active` must be a bool tensor"):
            balancer.backward(losses_of(model, inputs()), model.encoder.parameters(), active=wrong)


def test_sdmgrad_takes_the_inner_products_of_different_micro_batches():
    x = inputs(n=9)
    model, balancer, _ = make("sdmgrad")
    rows = []
    for part in x.chunk(3):
        losses = {name: loss / 3 for name, loss in losses_of(model, part).items()}
        shared = list(model.encoder.parameters())
        flat = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses.values()]
        rows.append(torch.stack([torch.cat([g.flatten() for g in row]) for row in flat]))
    A = sum(a @ b.T for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j) * 9 / 6
    expected = balance.SDMGrad().weights(A, {})
    for number, part in enumerate(x.chunk(3)):
        losses = {name: loss / 3 for name, loss in losses_of(model, part).items()}
        log = balancer.backward(losses, model.encoder.parameters(), last=number == 2)
    torch.testing.assert_close(log["weights"], expected, rtol=1e-6, atol=1e-9)
    found = torch.cat([p.grad.flatten() for p in model.encoder.parameters()])
    torch.testing.assert_close(found, expected @ sum(rows), rtol=1e-6, atol=1e-9)


def test_moving_averages_follow_their_loops():
    for method in ("moco", "db_mtl"):
        model, balancer, _ = make(method)
        shared, average, w = list(model.encoder.parameters()), 0.0, torch.full((3,), 1 / 3, dtype=torch.float64)
        for number in range(1, 5):
            losses = losses_of(model, inputs(seed=number))
            wanted = losses if method == "moco" else {name: (loss + 1e-8).log() for name, loss in losses.items()}
            flat = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in wanted.values()]
            J = torch.stack([torch.cat([g.flatten() for g in row]) for row in flat])
            if method == "moco":
                average = average + 0.5 / number**0.5 * (J - average)
                w = w - 0.1 / number**0.5 * average @ average.T @ w
                w = simplex(w)
            else:
                average = average + 0.1 * (J - average)
                w = average.norm(dim=1).max() / average.norm(dim=1)
            model.zero_grad()
            log = balancer.backward(losses, shared)
            torch.testing.assert_close(log["weights"], w, rtol=1e-9, atol=1e-12)
            found = torch.cat([p.grad.flatten() for p in shared])
            torch.testing.assert_close(found, w @ average, rtol=1e-9, atol=1e-12)


def test_mocos_published_form():
    model, balancer = Model(torch.float64), balance.MoCo(published=True)
    shared, losses = list(model.encoder.parameters()), losses_of(model, inputs())
    flat = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses.values()]
    J = torch.stack([torch.cat([g.flatten() for g in row]) for row in flat])
    sizes = torch.stack([loss.detach() for loss in losses.values()])
    average = 0.5 * J / J.norm(dim=1, keepdim=True) * sizes[:, None]
    w = torch.full((3,), 1 / 3, dtype=torch.float64)
    w = (w - 0.1 * average @ average.T @ w).softmax(0)
    torch.testing.assert_close(balancer.backward(losses, shared, scale=16.0)["weights"], w)
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in shared]), 16 * w @ average)


def test_an_average_begins_anew_when_parameters_freeze():
    model, balancer, _ = make("db_mtl")
    balancer.backward(losses_of(model, inputs()), model.encoder.parameters())
    model.encoder[0].requires_grad_(False)
    log = balancer.backward(losses_of(model, inputs()), model.encoder.parameters())
    assert log["weights"].isfinite().all()
    assert balancer.state_dict()["steps"].tolist() == [1.0] * 3
