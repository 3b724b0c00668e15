"""`balance.FusedStep`: bad steps are skipped; it scales and steps instead of the GradScaler, and reports misuse."""

from __future__ import annotations

import pytest
import torch
from helpers.fused import OPTIMIZERS, Convolutions, assert_near, assert_same, snapshot
from helpers.loop import Model, inputs
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from fastmtl import balance


def test_a_bad_loss_in_an_earlier_micro_batch_skips_the_step():
    model = Model()
    optimizer = AdamW(model.parameters())
    step, balancer = balance.FusedStep(optimizer), balance.Linear()
    before = snapshot(model, optimizer)
    losses = model.losses(inputs())
    step(balancer, losses | {"a": losses["a"] + float("inf")}, last=False)  # its gradient is finite
    assert step(balancer, model.losses(inputs(seed=2)))["skipped"]
    assert_same([p.detach() for p in model.parameters()], before)
    assert not step(balancer, model.losses(inputs()))["skipped"]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_bad_gradient_in_one_task_leaves_everything_as_it_was(name, bad):
    one, two = Convolutions(), Convolutions()
    a, b = (OPTIMIZERS[name](model.parameters()) for model in (one, two))
    steps = [balance.FusedStep(optimizer, clip_norm=1.0) for optimizer in (a, b)]
    balancers = [balance.MGDA(), balance.MGDA()]  # without a random order, which the skipped step would draw too
    for seed in range(3):
        losses = one.losses(seed)
        losses["task 1"] = losses["task 1"] + 0 * bad * one.encoder[0].weight.sum()
        before = snapshot(one, a)
        log = steps[0](balancers[0], losses, one.encoder.parameters())
        assert log["skipped"]
        if seed:
            assert_same(snapshot(one, a), before)
        steps[0](balancers[0], one.losses(seed), one.encoder.parameters())
        steps[1](balancers[1], two.losses(seed), two.encoder.parameters())
    assert_same(snapshot(one, a), snapshot(two, b))  # a skipped step, the very first one too, left no trace


def test_a_bad_gradient_of_an_inactive_task_or_of_a_head():
    model = Model(torch.float32)
    optimizer = AdamW(model.parameters())
    step, balancer = balance.FusedStep(optimizer), balance.PCGrad()
    before = snapshot(model, optimizer)
    inf = float("inf")
    spoilt = {"a": lambda: model.encoder[0].weight.sum(), "c": lambda: model.heads["c"].bias.sum()}
    for name, term in spoilt.items():
        losses = model.losses(inputs(torch.float32))
        losses[name] = losses[name] + (term() * inf).nan_to_num(0.0, 0.0, 0.0) * 0 + term() * torch.tensor(inf) * 0
        active = torch.tensor([name != "a", True, True])
        assert step(balancer, losses, model.shared(), active=active)["skipped"]
    assert_same([p.detach() for p in model.parameters()], before)


def test_a_sum_that_would_overflow_is_skipped():
    p = nn.Parameter(torch.ones(4))
    step = balance.FusedStep(SGD([p], lr=1e-38))
    losses = {"a": 3e38 * p[:2].sum(), "b": 3e38 * p.sum()}
    log = step(balance.Linear(), losses, [p])
    assert log["skipped"]  # in .grad
    log = step(balance.PCGrad(), losses={"a": 3e38 * p[:2].sum(), "b": 3e38 * p.sum()}, shared=[p])
    assert log["gradient_norm"].isfinite()
    assert log["skipped"]
    assert torch.equal(p, torch.ones(4))


def _scaled_run(fused: bool, spoil: int = -1, enabled: bool = True) -> tuple[list[Tensor], float]:
    model = Model(torch.float32)
    optimizer = AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2, enabled=enabled)
    step, balancer = balance.FusedStep(optimizer, clip_norm=1.0), balance.MGDA()
    for seed in range(5):
        losses = model.losses(inputs(torch.float32, seed=seed))
        if seed == spoil:
            losses["b"] = losses["b"] * 1e38
        if fused:
            step(balancer, losses, model.shared(), scale=scaler)
        else:
            optimizer.zero_grad()
            scale = scaler.scale(torch.ones(())) if enabled else None
            balancer.backward(losses, model.shared(), scale=scale)
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
        scaler.update()
    return snapshot(model, optimizer), scaler.get_scale()


@pytest.mark.parametrize(("spoil", "scale"), [(-1, 4096.0), (2, 2048.0)])
def test_a_grad_scaler(spoil, scale):
    (found, found_scale), (wanted, wanted_scale) = (_scaled_run(fused, spoil) for fused in (True, False))
    assert found_scale == wanted_scale == scale
    assert_near(found, wanted, rtol=1e-4)


def test_a_grad_scaler_that_is_off():
    assert_near(_scaled_run(True, enabled=False)[0], _scaled_run(False, enabled=False)[0], rtol=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scaler_used_after_instead_of_before(fused):
    model = Model(torch.float32)
    optimizer, scaler = AdamW(model.parameters(), fused=fused), torch.amp.GradScaler("cpu")
    step, balancer = balance.FusedStep(optimizer), balance.PCGrad()

    def losses():
        return model.losses(inputs(torch.float32))

    step(balancer, losses(), model.shared(), scale=scaler)
    for after in (scaler.step, scaler.unscale_):
        with pytest.raises(RuntimeError, match=r"step\(\)"):
            after(optimizer)
    with pytest.raises(RuntimeError, match=r"`scale`: step\(\), or a FusedStep"):
        step(balancer, losses(), model.shared(), scale=scaler)
    scaler.update()
    scaler.scale(losses()["a"]).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"`scale`: unscale_\(\)"):
        step(balancer, losses(), model.shared(), scale=scaler)
    scaler.update()
    optimizer.zero_grad()
    scaled = {name: scaler.scale(loss) for name, loss in losses().items()}
    step(balancer, scaled, model.shared())
    # torch's own word where it looks before the optimizer does
    with pytest.raises((RuntimeError, AssertionError), match=r"right after a FusedStep|No inf checks"):
        scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="right after a FusedStep"):
        optimizer.step()
