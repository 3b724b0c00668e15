"""Activation checkpoints run the forward pass again in every backward: statistics move once, dropout drops the same."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

from fastmtl import balance, config
from fastmtl.training import gradient_stats


class Counting(nn.Module):
    """A user's layer with its own state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return x


class Encoder(nn.Module):
    """[B, 4] -> [B, 6] through every kind of layer with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 6),
            nn.BatchNorm1d(6),
            nn.Dropout(0.3),
            nn.Linear(6, 6),
            nn.BatchNorm1d(6, momentum=None),
            nn.Unflatten(1, (1, 6)),
            nn.InstanceNorm1d(1, track_running_stats=True),
            Counting(),
            nn.Flatten(),
        )
        self.still = nn.BatchNorm1d(6).eval()  # frozen
        self.frozen_too = nn.BatchNorm1d(6, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen_too(self.still(self.layers(x)))


WAYS = {
    "plain": lambda model, x: model(x),
    "checkpoint": partial(checkpoint, use_reentrant=False),
    "reentrant": partial(checkpoint, use_reentrant=True),
    "nested": lambda model, x: checkpoint(lambda y: checkpoint(model, y, use_reentrant=False), x, use_reentrant=False),
}


def steps(balancer: Any, way: str, fused: bool = False, strategy: str = "") -> list[Tensor]:
    """Buffers and parameters after two steps of three tasks."""
    torch.manual_seed(0)
    encoder, heads = Encoder(), nn.ModuleList(nn.Linear(6, 1) for _ in range(3))
    optimizer = torch.optim.SGD([*encoder.parameters(), *heads.parameters()], lr=0.1)
    for number in range(2):
        torch.manual_seed(number)
        x = (torch.randn(16, 4) + 3).requires_grad_()  # for reentrant checkpoints
        z = WAYS[way](encoder, x)
        more = {}
        if strategy == "features":
            z = balance.cut(z)
            more = {"features": z}
        losses = {str(k): (head(z) - 1).square().mean() for k, head in enumerate(heads)}
        if fused:
            balance.FusedStep(optimizer)(balancer, losses, encoder.parameters())
        else:
            optimizer.zero_grad()
            balancer.backward(losses, encoder.parameters(), **more)
            optimizer.step()
    return [*encoder.state_dict().values(), *(p.detach() for p in heads.parameters())]


def check(found: list[Tensor], wanted: list[Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("way", ["checkpoint", "reentrant", "nested"])
@pytest.mark.parametrize("name", balance.list_balancers())
def test_a_step_is_that_without_checkpoints(name, way):
    if (name, way) == ("gradnorm", "reentrant"):  # measures one layer, which reentrant checkpoints do not allow
        with pytest.raises(RuntimeError, match="use_reentrant"):
            steps(balance.create_balancer(name), way)
        return
    balancer = balance.create_balancer(name)
    check(steps(deepcopy(balancer), way), steps(balancer, "plain"))


@pytest.mark.parametrize("way", ["checkpoint", "nested"])
@pytest.mark.parametrize("options", [{"strategy": "features"}, {"strategy": "last_layer"}, {"reuse": 2}])
def test_under_every_strategy(options, way):
    found, wanted = (
        steps(balance.create_balancer("pcgrad", **options), one, strategy=options.get("strategy", ""))
        for one in (way, "plain")
    )
    check(found, wanted)


@pytest.mark.parametrize("name", ["mgda", "linear", None])
def test_in_the_fused_step(name):
    found, wanted = (
        steps(balance.create_balancer(name) if name else None, way, fused=True) for way in ("checkpoint", "plain")
    )
    check(found, wanted)


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")  # of hooks on all modules, which is meant
def test_with_a_compiled_part_inside_the_checkpoint():
    """A compiled model does not call the hooks of its layers."""
    encoder, heads = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), [nn.Linear(6, 1) for _ in range(3)]
    compiled = torch.compile(encoder, backend="eager")
    for number in (1, 2):
        z = checkpoint(compiled, torch.randn(16, 4), use_reentrant=False)
        losses = {str(k): head(z).square().mean() for k, head in enumerate(heads)}
        balance.PCGrad().backward(losses, encoder.parameters())
        assert encoder[1].num_batches_tracked == number


def test_batched_backwards_run_it_once_again():
    """`batched` does not support dropout under a checkpoint: torch's vmap does not draw random numbers."""
    encoder, heads = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), [nn.Linear(6, 1) for _ in range(3)]
    z = checkpoint(encoder, torch.randn(16, 4), use_reentrant=False)
    losses = {str(k): head(z).square().mean() for k, head in enumerate(heads)}
    balance.PCGrad().use("batched").backward(losses, encoder.parameters())
    assert encoder[1].num_batches_tracked == 1


def test_a_look_at_the_gradients_moves_nothing():
    encoder, heads = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), [nn.Linear(6, 1) for _ in range(3)]
    z = checkpoint(encoder, torch.randn(16, 4), use_reentrant=False)
    gradient_stats.watch({str(k): head(z).square().mean() for k, head in enumerate(heads)}, encoder.parameters())
    assert encoder[1].num_batches_tracked == 1
    assert config.TrainingConfig().gradient_stats_every >= 0


def test_buffers_are_the_modules_own_again_after_an_error():
    encoder = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    before = dict(encoder.named_buffers())
    z = checkpoint(encoder, torch.randn(16, 4), use_reentrant=False)

    def fail(gradient: Tensor) -> None:
        raise RuntimeError("somebody's hook")

    encoder[0].weight.register_hook(fail)
    with pytest.raises(RuntimeError, match="somebody's hook"):
        balance.PCGrad().backward({"a": z.square().mean(), "b": z.sum()}, encoder.parameters())
    assert all(before[name] is buffer for name, buffer in encoder.named_buffers())
    assert encoder[1].num_batches_tracked == 1
    encoder(torch.randn(16, 4))  # and no hook is left
    assert encoder[1].num_batches_tracked == 2


def test_a_module_that_runs_outside_the_backward_is_left_alone():
    """A network that is called meanwhile by another thread, or by a hook outside of the graph."""
    other, parameter = nn.BatchNorm1d(2), nn.Parameter(torch.ones(2))
    loss = parameter.sum()
    seen: list[bool] = []

    class Spying(dict):
        def items(self):
            other(torch.randn(4, 2))
            seen.append(True)
            return super().items()

    balance.Linear().backward(Spying(a=loss, b=parameter.square().sum()))
    assert seen
    assert other.num_batches_tracked == len(seen)


def test_power_iterations_are_buffers_too():
    found = []
    for way in ("plain", "checkpoint"):
        torch.manual_seed(0)
        layer = spectral_norm(nn.Linear(4, 6))
        z = WAYS[way](layer, torch.randn(16, 4))
        balance.Linear().backward({"a": z.square().mean(), "b": z.mean()}, layer.parameters())
        found.append(layer.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
