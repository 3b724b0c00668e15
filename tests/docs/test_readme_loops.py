"""The loops that README.md and docs/balancing.md show, before and after the diff: they train alike."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from helpers.loop import Model, inputs
from torch import Tensor

from fastmtl import balance
from fastmtl.balance.plain_step import PlainUpdate
from fastmtl.builders.optimizers import build_optimizer, build_update
from fastmtl.config import ConfigError, load_recipe

STEPS = 4


def _pair(dtype: torch.dtype = torch.float32):
    """Model, optimizer and a sum of losses that is easy to compare: `Linear` is the plain sum."""
    model = Model(dtype)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def _compare(found: Model, wanted: Model, rtol: float = 1e-5) -> None:
    for one, other in zip(found.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=1e-6)
    assert not torch.equal(found.encoder[0].weight, Model().encoder[0].weight.to(found.encoder[0].weight))


@pytest.mark.parametrize("how", ["plain", "scaler", "compile"])
def test_the_diff_changes_nothing_but_who_does_it(how):
    left, right = _pair(), _pair()
    step = balance.FusedStep(right[1], clip_norm=1.0)
    balancer = balance.Linear()
    scalers = [torch.amp.GradScaler("cpu", init_scale=256.0, enabled=how == "scaler") for _ in range(2)]
    encoders = [
        torch.compile(m.encoder, backend="aot_eager") if how == "compile" else m.encoder for m, _ in (left, right)
    ]

    def losses(model: Model, encoder, seed: int) -> dict[str, Tensor]:
        x = inputs(torch.float32, seed=seed)
        return model.losses(x, encoder(x))

    for seed in range(STEPS):
        model, optimizer = left
        optimizer.zero_grad()
        scalers[0].scale(sum(losses(model, encoders[0], seed).values())).backward()
        scalers[0].unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scalers[0].step(optimizer)
        scalers[0].update()

        model, _ = right
        options = {"scale": scalers[1]} if how == "scaler" else {}
        step(balancer, losses(model, encoders[1], seed), shared=model.encoder.parameters(), **options)
        scalers[1].update()
    _compare(right[0], left[0])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("method", ["uncertainty", "imtl_l", "decay", "dwa", "famo"])
def test_methods_that_ask_more_of_the_loop_move_their_weights(method, fused):
    """docs/balancing.md's table; without these lines the weights stay as they began."""
    model, balancer = Model(torch.float32), balance.create_balancer(method)
    learned = {"params": balancer.parameters(), "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([{"params": model.parameters()}, learned], lr=1e-2)
    step = balance.FusedStep(optimizer)

    def losses() -> dict[str, Tensor]:
        return {name: loss.square() for name, loss in model.losses(inputs(torch.float32)).items()}

    weights = []
    for _ in range(4):
        optimizer.zero_grad()
        if fused:
            log = step(balancer, losses(), shared=model.encoder.parameters())
        else:
            log = balancer.backward(losses(), shared=model.encoder.parameters())
            optimizer.step()
        balancer.after_step(losses)
        balancer.on_epoch()
        weights.append(log["weights"])
    assert not torch.allclose(weights[-1], weights[0], rtol=1e-3)


class _ApexAdam(torch.optim.Optimizer):
    """As apex.optimizers.FusedAdam is called: no `fused`, no step that could be skipped on the device, gradients set
    to None by its own zero_grad, state in its own keys."""

    def __init__(self, params, lr=1e-3, weight_decay=0.0, adam_w_mode=True, set_grad_none=True):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.steps = 0

    def step(self, closure=None, grads=None, output_params=None, scale=None, grad_norms=None, grad_scaler=None) -> Any:
        self.steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.add_(parameter.grad, alpha=-group["lr"])


@pytest.fixture
def apex(monkeypatch):
    """A module that looks like NVIDIA's."""
    optimizers = types.ModuleType("apex.optimizers")
    optimizers.FusedAdam = optimizers.FusedLAMB = _ApexAdam
    package = types.ModuleType("apex")
    package.optimizers = optimizers
    monkeypatch.setitem(sys.modules, "apex", package)
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)


@pytest.mark.parametrize("name", ["apex_adam", "apex_lamb"])
def test_apex_where_it_is_importable(apex, name):
    recipe = load_recipe("demo", {"optimizer": {"optimizer": name}})
    model, balancer = Model(torch.float32), balance.PCGrad()
    optimizer = build_optimizer(recipe, model, balancer)
    assert isinstance(optimizer, _ApexAdam)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [recipe.optimizer.weight_decay, 0.0]
    update = build_update(recipe, optimizer)
    assert isinstance(update, PlainUpdate)
    before = model.encoder[0].weight.clone()
    done = update(balancer, model.losses(inputs(torch.float32)), model.encoder.parameters())
    assert optimizer.steps == 1
    assert not done["skipped"]
    assert not torch.equal(model.encoder[0].weight, before)
    before = model.encoder[0].weight.clone()
    losses = model.losses(inputs(torch.float32))
    assert update(balancer, losses | {"b": losses["b"] * float("nan")}, model.encoder.parameters())["skipped"]
    assert optimizer.steps == 1, "a step that is not finite is not taken"
    assert torch.equal(model.encoder[0].weight, before)
    with pytest.raises(ConfigError, match=r"fused_step cannot be true: got .*_ApexAdam"):
        build_update(load_recipe("demo", {"training": {"fused_step": True}}), optimizer)


def test_apex_of_another_project(monkeypatch):
    """PyPI's package of that name has no optimizers."""
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.delitem(sys.modules, "apex.optimizers", raising=False)
    recipe = load_recipe("demo", {"optimizer": {"optimizer": "apex_adam"}})
    with pytest.raises(ConfigError, match="the PyPI package apex is another project"):
        build_optimizer(recipe, Model(torch.float32), balance.PCGrad())
