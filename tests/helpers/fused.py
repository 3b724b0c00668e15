"""What the tests of `balance.FusedStep` share: networks, the step as a loop writes it, and by its definition."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from fastmtl import balance, ops
from fastmtl.ops.gradients import fused_step
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
    arena = balancer.arena
    inside = {id(p) for p in arena._parameters}
    heads = [p.grad for p in model.parameters() if p.grad is not None and id(p) not in inside]
    G, w = ops.gram(arena.rows), balancer.seen
    w = w.float().double()
    norm = ((w @ G @ w).clamp(min=0) + fused_step.sum_of_squares(heads)).sqrt()
    factor = torch.ones_like(norm) if clip == 0 else (clip / (norm + 1e-6)).clamp(max=1.0)
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
