"""`balance.FusedStep`: the state stays in the optimizer; unsupported optimizers are refused and not changed."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from helpers.fused import Convolutions, assert_near, assert_same, plain, snapshot
from helpers.loop import Model, inputs
from torch import nn
from torch.optim import SGD, Adam, AdamW

from fastmtl import balance, ops
from fastmtl.ops.core.backends import BackendError


class Train:
    """A training run that can be stopped: model, optimizer, schedule, balancer."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.model = Convolutions().to(dtype)
        weights = [p for p in self.model.parameters() if p.ndim > 1]
        rest = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": weights}, {"params": rest, "weight_decay": 0.0, "lr": 3e-3, "betas": (0.8, 0.9)}]
        self.optimizer = AdamW(groups, lr=1e-2)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 0.9**step)
        self.balancer = balance.PCGrad()
        self.step = balance.FusedStep(self.optimizer, clip_norm=1.0)
        self.parts = (self.model, self.optimizer, self.schedule, self.balancer)

    def run(self, seeds) -> Train:
        for seed in seeds:
            self.step(self.balancer, self.model.losses(seed), self.model.encoder.parameters())
            self.schedule.step()
        return self

    def run_plain(self, seeds) -> Train:
        for seed in seeds:
            losses, shared = self.model.losses(seed), self.model.encoder.parameters()
            plain(self.model, self.optimizer, self.balancer, losses, shared, clip=1.0)
            self.schedule.step()
        return self


@pytest.mark.parametrize("contiguous", [False, True], ids=["as saved", "moments saved contiguous"])
def test_resuming_is_bit_equal_with_groups_and_a_schedule(contiguous):
    whole, first = Train().run(range(6)), Train().run(range(3))
    states = [copy.deepcopy(part.state_dict()) for part in first.parts]
    if contiguous:
        for state in states[1]["state"].values():
            state |= {name: state[name].contiguous() for name in ("exp_avg", "exp_avg_sq")}
    second = Train()
    for part, state in zip(second.parts, states, strict=True):
        part.load_state_dict(state)
    second.run(range(3, 6))
    assert_same(snapshot(second.model, second.optimizer), snapshot(whole.model, whole.optimizer))


def test_back_to_the_optimizers_own_step_and_forth():
    fused = Train(torch.float64).run(range(6))
    mixed = Train(torch.float64).run(range(2)).run_plain(range(2, 4)).run(range(4, 6))
    assert_near(snapshot(fused.model, fused.optimizer), snapshot(mixed.model, mixed.optimizer), rtol=1e-9)
    steps = {state["step"].item() for state in mixed.optimizer.state.values()}
    assert steps == {6.0}


def test_the_learning_rate_may_be_a_tensor():
    one, two = Model(), Model()
    a, b = AdamW(one.parameters(), lr=torch.tensor(0.25, dtype=torch.float64)), AdamW(two.parameters(), lr=0.25)
    for model, optimizer in ((one, a), (two, b)):
        balance.FusedStep(optimizer)(balance.PCGrad(), model.losses(inputs()), model.shared())
    assert_same(snapshot(one, a), snapshot(two, b))


def test_no_warning_from_a_schedule_and_no_stale_graph():
    train = Train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train.run([0])
    weight = train.model.encoder[0].weight
    version = weight._version
    stale = (weight * weight).sum()
    train.run([1])
    assert weight._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()


def test_unused_frozen_and_foreign_parameters():
    one, two = Model(), Model()
    optimizers = []
    for model in (one, two):
        model.encoder[0].weight.requires_grad_(False)
        kept = [p for p in model.parameters() if p is not model.encoder[2].bias]
        optimizers.append(AdamW(kept, lr=1e-2, weight_decay=0.5))  # one shared parameter is nobody's
    before = [p.detach().clone() for p in (*one.unused.parameters(), one.encoder[0].weight, one.encoder[2].bias)]
    step, balancers = balance.FusedStep(optimizers[0]), (balance.PCGrad(), balance.PCGrad())
    for seed in range(3):
        step(balancers[0], one.losses(inputs(seed=seed)), one.shared())
        optimizers[1].zero_grad()
        balancers[1].backward(two.losses(inputs(seed=seed)), two.shared())
        optimizers[1].step()
    assert_near(snapshot(one, optimizers[0]), snapshot(two, optimizers[1]), rtol=1e-10)
    after = [p.detach() for p in (*one.unused.parameters(), one.encoder[0].weight, one.encoder[2].bias)]
    assert_same(after, before)  # no update and no decay
    torch.testing.assert_close(one.encoder[2].bias.grad, two.encoder[2].bias.grad)


def test_tied_parameters_and_gradients_that_were_there():
    def make():
        model = Model()
        model.heads["b"].weight = nn.Parameter(model.heads["b"].weight.detach())
        model.encoder[0].bias = model.encoder[0].bias  # given twice below
        return model, AdamW(model.parameters(), lr=1e-2)

    (one, a), (two, b) = make(), make()
    for model in (one, two):
        (model.encoder[2].weight.sum() + model.heads["a"].bias.sum()).backward()
    shared = [[*model.shared(), model.encoder[0].bias] for model in (one, two)]
    balance.FusedStep(a)(balance.PCGrad(), one.losses(inputs()), shared[0])
    balance.PCGrad().backward(two.losses(inputs()), shared[1])
    b.step()
    assert_near(snapshot(one, a), snapshot(two, b), rtol=1e-10)
    assert all(p.grad is None for p in one.parameters())


def test_the_combined_gradient_is_never_written(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("combined")

    monkeypatch.setattr(ops, "combine", refuse)
    model = Model(torch.float32)
    step = balance.FusedStep(AdamW(model.parameters()))
    step(balance.PCGrad(), model.losses(inputs(torch.float32)), model.shared())
    assert all(p.grad is None for p in model.parameters())


class Rebuilt(AdamW):
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.RMSprop(p), "AdamW, Adam or SGD.*RMSprop.*work with any"),
        (lambda p: Rebuilt(p), "Rebuilt"),
        (lambda p: AdamW(p, amsgrad=True), "amsgrad=True"),
        (lambda p: Adam(p, maximize=True), "maximize=True"),
        (lambda p: SGD(p, differentiable=True), "differentiable=True"),
        (lambda p: None, "NoneType"),
    ],
)
def test_optimizers_that_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        balance.FusedStep(make([nn.Parameter(torch.ones(2))]))


def test_other_bad_arguments():
    optimizer = AdamW([nn.Parameter(torch.ones(2))])
    for clip in (-1.0, float("nan"), float("inf"), "1", True):
        with pytest.raises(ValueError, match="`clip_norm` must be"):
            balance.FusedStep(optimizer, clip_norm=clip)
    with pytest.raises(ValueError, match="`backend` must be"):
        balance.FusedStep(optimizer, backend="metal")
    optimizer.register_step_post_hook(lambda *_: None)
    with pytest.raises(ValueError, match="step hook"):
        balance.FusedStep(optimizer)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ([torch.ones(2, dtype=torch.bfloat16)], "float32 or float64 parameters of one device; got torch.bfloat16"),
        ([torch.ones(2), torch.ones(2, dtype=torch.float16)], "torch.float16 on cpu, torch.float32 on cpu"),
        ([torch.ones(4, 4)[:, ::2]], "not dense"),
    ],
)
def test_parameters_that_are_refused_stay_as_they_were(parameters, message):
    made = [nn.Parameter(p) for p in parameters]
    step = balance.FusedStep(AdamW(made))
    with pytest.raises(ValueError, match=message):
        step(None, sum(p.double().square().sum() for p in made))
    assert all(torch.equal(p, torch.ones_like(p)) for p in made)


def test_errors_of_the_balancer_pass_through_and_leave_nothing():
    model = Model()
    step, balancer = balance.FusedStep(AdamW(model.parameters())), balance.PCGrad()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="`losses` must map"):
        step(balancer, {}, model.shared())
    with pytest.raises(ValueError, match="must reach at least one parameter"):
        step(balancer, model.losses(inputs()), model.unused.parameters())
    assert_same([p.detach() for p in model.parameters()], before)
    fresh = balance.FusedStep(AdamW(model.parameters()), backend="cuda")
    with pytest.raises(BackendError, match="cuda"):
        fresh(balancer, model.losses(inputs()), model.shared())
    assert not step(balancer, model.losses(inputs()), model.shared())["skipped"]
