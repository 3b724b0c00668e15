"""`balance.FusedStep`: the unfused step to the bit on the CPU, torch's optimizers to rounding, nothing ever lost."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from _loop import Model, inputs
from test_gram import needs_cpp
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from fastmtl import balance, ops
from fastmtl.ops._backends import BackendError
from fastmtl.reference import fused_step as reference

OPTIMIZERS = {
    "adamw": partial(AdamW, lr=1e-2, weight_decay=0.1),
    "adam": partial(Adam, lr=1e-2, betas=(0.8, 0.99)),
    "adam with decay": partial(Adam, lr=1e-2, weight_decay=0.1),
    "sgd": partial(SGD, lr=1e-2, weight_decay=0.1),
    "sgd with momentum": partial(SGD, lr=1e-2, momentum=0.9),
    "sgd with dampening": partial(SGD, lr=1e-2, momentum=0.9, dampening=0.3, weight_decay=0.1),
    "sgd with nesterov": partial(SGD, lr=1e-2, momentum=0.9, nesterov=True),
}


class Convolutions(nn.Module):
    """A shared channels-last encoder, some thousand parameters, and K heads."""

    def __init__(self, K: int = 3, width: int = 24) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Conv2d(3, width, 3), nn.Tanh(), nn.Conv2d(width, width, 3), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(width, 2) for _ in range(K))
        self.to(memory_format=torch.channels_last)

    def losses(self, seed: int) -> dict[str, Tensor]:
        x = torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(seed)).to(self.heads[0].weight)
        z = self.encoder(x).mean((2, 3))
        return {f"task {k}": (-1) ** k * (k + 1) * head(z).square().mean() for k, head in enumerate(self.heads)}


def plain(model, optimizer, balancer, losses, shared, clip=0.0) -> Tensor:
    """The step as a loop writes it."""
    balancer.backward(losses, shared)
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf"))
    optimizer.step()
    optimizer.zero_grad()
    return norm


def snapshot(model, optimizer) -> list[Tensor]:
    state = [v for p in model.parameters() for v in optimizer.state.get(p, {}).values() if v is not None]
    return [tensor.detach().clone() for tensor in [*model.parameters(), *state]]


def assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(found) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def assert_near(found: list[Tensor], wanted: list[Tensor], rtol=1e-6) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * (b.abs().max().item() + 1e-3))


def by_definition(model, optimizer, balancer, losses, shared, clip: float) -> None:
    """Our own combine, clip, and the scalar optimizer of the reference. Clips by the norm FusedStep would find."""
    balancer.backward(losses, shared)
    arena = balancer._arena
    inside = {id(p) for p in arena._parameters}
    heads = [p.grad for p in model.parameters() if p.grad is not None and id(p) not in inside]
    G, w = ops.gram(arena.rows), balancer.seen
    w = w.float().double()
    norm = ((w @ G @ w).clamp(min=0) + ops._fused_step.sum_of_squares(heads)).sqrt()
    factor = reference.clip_factor(norm, clip)
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is None:
                continue
            state = optimizer.state[p]
            if "betas" in group:
                state["step"] = state.get("step", torch.tensor(0.0)) + 1
                m, v = (state.get(name, torch.zeros_like(p)) for name in ("exp_avg", "exp_avg_sq"))
                options = {"eps": group["eps"], "weight_decay": group["weight_decay"]}
                options |= {"beta1": group["betas"][0], "beta2": group["betas"][1]}
                options["decoupled"] = isinstance(optimizer, AdamW)
                t = state["step"].item()
                new, state["exp_avg"], state["exp_avg_sq"] = reference.adam(
                    p.detach(), p.grad, m, v, t, group["lr"], factor, **options
                )
            else:
                options = {name: group[name] for name in ("momentum", "dampening", "nesterov", "weight_decay")}
                first = "momentum_buffer" not in state
                m = state.get("momentum_buffer", torch.zeros_like(p)) if group["momentum"] else None
                new, m = reference.sgd(p.detach(), p.grad, m, 1.0 if first else 2.0, group["lr"], factor, **options)
                if m is not None:
                    state["momentum_buffer"] = m
            p.data.copy_(new)
    optimizer.zero_grad()


class Seen(balance.PCGrad):
    """Remembers its weights."""

    def weights(self, G, losses):
        self.seen = super().weights(G, losses)
        return self.seen


def _to_the_bit(name: str, K: int, clip: float, steps: int = 3) -> None:
    one, two = Convolutions(K), Convolutions(K)
    a, b = (OPTIMIZERS[name](model.parameters()) for model in (one, two))
    step, balancers = balance.FusedStep(a, clip_norm=clip, backend="cpp"), (Seen(), Seen())
    for seed in range(steps):
        step(balancers[0], one.losses(seed), one.encoder.parameters())
        by_definition(two, b, balancers[1], two.losses(seed), two.encoder.parameters(), clip)
    assert_same(snapshot(one, a), snapshot(two, b))


@needs_cpp
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_combine_clip_and_a_scalar_optimizer_to_the_bit(name, clip):
    _to_the_bit(name, 3, clip)


@needs_cpp
@pytest.mark.parametrize("K", [1, 2, 4, 5, 8])
def test_any_number_of_tasks_to_the_bit(K):
    _to_the_bit("adamw", K, 0.1, steps=2)


@needs_cpp
@pytest.mark.slow
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_to_the_bit_on_lesser_instruction_sets(isa):
    chosen = "test_combine_clip_and_a_scalar or any_number_of_tasks_to"
    environment = os.environ | {"FASTMTL_ISA": isa}
    run = [sys.executable, "-m", "pytest", str(Path(__file__)), "-q", "-k", chosen]
    subprocess.run(run, check=True, env=environment, timeout=300)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=needs_cpp)])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("variant", [{"fused": True}, {"foreach": True}], ids=["fused", "foreach"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_torchs_optimizers_to_rounding(name, variant, backend, dtype):
    one, two = Convolutions().to(dtype), Convolutions().to(dtype)
    a, b = OPTIMIZERS[name](one.parameters()), OPTIMIZERS[name](two.parameters(), **variant)
    step = balance.FusedStep(a, clip_norm=0.5, backend=backend)
    first, second = balance.PCGrad(), balance.PCGrad()
    for seed in range(3):
        two.load_state_dict(one.state_dict())
        log = step(first, one.losses(seed), one.encoder.parameters())
        norm = plain(two, b, second, two.losses(seed), two.encoder.parameters(), clip=0.5)
        rtol = 1e-6 if dtype == torch.float32 else 1e-14
        assert_near([p.detach() for p in one.parameters()], [p.detach() for p in two.parameters()], rtol)
        torch.testing.assert_close(log["gradient_norm"].to(dtype), norm, rtol=10 * rtol, atol=0)
        assert not log["skipped"]


@pytest.mark.parametrize("name", ["adamw", "sgd with momentum"])
def test_fifty_steps_in_float64(name):
    one, two = Model(), Model()
    a, b = OPTIMIZERS[name](one.parameters()), OPTIMIZERS[name](two.parameters())
    step, first, second = balance.FusedStep(a, clip_norm=1.0), balance.PCGrad(), balance.PCGrad()
    for seed in range(50):
        step(first, one.losses(inputs(seed=seed)), one.shared())
        plain(two, b, second, two.losses(inputs(seed=seed)), two.shared(), clip=1.0)
    assert_near(snapshot(one, a), snapshot(two, b), rtol=1e-10)


@pytest.mark.parametrize("name", ["linear", "uncertainty", "famo", "graddrop", "sdmgrad", "moco", "db_mtl", "mgda"])
def test_other_balancers(name):
    one, two = Model(), Model()
    first, second = balance.create_balancer(name), balance.create_balancer(name)
    a, b = (AdamW([*model.parameters()], lr=1e-2) for model in (one, two))
    for balancer, optimizer in ((first, a), (second, b)):
        if learned := list(balancer.parameters()):
            optimizer.add_param_group({"params": learned, "weight_decay": 0.0, "lr": 0.1})
    step = balance.FusedStep(a, clip_norm=1.0)
    for seed in range(4):
        log = step(first, one.losses(inputs(seed=seed)), one.shared())
        b.zero_grad()
        done = second.backward(two.losses(inputs(seed=seed)), two.shared())
        nn.utils.clip_grad_norm_([p for group in b.param_groups for p in group["params"]], 1.0)
        b.step()
        torch.testing.assert_close(log["weights"], done["weights"])
    # The learned weights of `uncertainty` are float32.
    assert_near(snapshot(one, a), snapshot(two, b), rtol=1e-6 if name == "uncertainty" else 1e-9)


def test_a_plain_loss():
    one, two = Model(), Model()
    a, b = AdamW(one.parameters()), AdamW(two.parameters())
    step = balance.FusedStep(a)
    for seed in range(3):
        losses = one.losses(inputs(seed=seed))
        step(None, losses if seed else sum(losses.values()))
        b.zero_grad()
        sum(two.losses(inputs(seed=seed)).values()).backward()
        b.step()
    assert_near(snapshot(one, a), snapshot(two, b), rtol=1e-10)
    with pytest.raises(ValueError, match="`losses` must be a scalar"):
        step(None, torch.ones(2))


def test_micro_batches():
    one, two = Model(), Model()
    a, b = AdamW(one.parameters()), AdamW(two.parameters())
    step, second = balance.FusedStep(a), balance.PCGrad()
    before = snapshot(one, a)
    first = balance.PCGrad()
    assert step(first, one.losses(inputs(seed=0)), one.shared(), last=False) == {}
    assert_same(snapshot(one, a), before)
    log = step(first, one.losses(inputs(seed=1)), one.shared())
    second.backward(two.losses(inputs(seed=0)), two.shared(), last=False)
    plain_log = second.backward(two.losses(inputs(seed=1)), two.shared())
    b.step()
    assert torch.equal(log["weights"], plain_log["weights"])
    assert_near(snapshot(one, a), snapshot(two, b), rtol=1e-12)


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


@needs_cpp
def test_the_same_bits_for_every_number_of_threads(two_threads):
    found = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(n)) for n in (70_001, 5, 130_000)]
        heads = [nn.Parameter(torch.randn(n)) for n in (40_003, 3)]
        optimizer = AdamW([*parameters, *heads])
        step = balance.FusedStep(optimizer, clip_norm=1.0, backend="cpp")
        for _ in range(2):
            losses = {"a": sum(p.square().sum() for p in [*parameters, heads[0]])}
            losses["b"] = -sum((p - 1).square().sum() for p in [*parameters, heads[1]])
            log = step(balance.PCGrad(), losses, parameters)
        found.append([*(p.detach().clone() for p in [*parameters, *heads]), log["gradient_norm"]])
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


class Train:
    """A training that can be stopped: model, optimizer, schedule, balancer."""

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
    assert balancer._take_rows is None
    assert_same([p.detach() for p in model.parameters()], before)
    fresh = balance.FusedStep(AdamW(model.parameters()), backend="cuda")
    with pytest.raises(BackendError, match="cuda"):
        fresh(balancer, model.losses(inputs()), model.shared())
    assert not step(balancer, model.losses(inputs()), model.shared())["skipped"]


NVCC = shutil.which("nvcc", path="/usr/local/cuda/bin") or shutil.which("nvcc")


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
def test_the_gpu_kernels_compile_for_hopper_without_spills(tmp_path):
    source = Path(__file__).parent.parent / "csrc" / "fused_step.cu"
    flags = ["-std=c++17", "-O3", "-gencode=arch=compute_90a,code=sm_90a", "-Xptxas=-v", "-c", str(source)]
    done = subprocess.run([NVCC, *flags, "-o", str(tmp_path / "out.o")], capture_output=True, text=True, check=True)
    found = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(found) >= 8
    assert set(found) == {("0", "0", "0")}
