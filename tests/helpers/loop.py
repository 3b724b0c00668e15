"""Somebody else's training loop: a model with conflicting tasks, and the gradients PCGrad should leave in it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastmtl import balance
from helpers.gradients import textbook_pcgrad


class Model(nn.Module):
    """A shared encoder and three heads whose gradients conflict; `unused` takes part in nothing."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6))
        self.unused = nn.Linear(2, 2)
        self.heads = nn.ModuleDict({name: nn.Linear(6, n) for name, n in {"a": 1, "b": 2, "c": 3}.items()})
        self.to(dtype)

    def shared(self) -> list[nn.Parameter]:
        return [*self.encoder.parameters(), *self.unused.parameters()]

    def losses(self, x: Tensor, features: Tensor | None = None) -> dict[str, Tensor]:
        z = self.encoder(x) if features is None else features
        a, b, c = (self.heads[name](z) for name in "abc")
        return {"a": a.mean(), "b": (b.sum(1) + a[:, 0].detach() - 3).square().mean(), "c": -c.exp().mean()}


def inputs(dtype: torch.dtype = torch.float64, n: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def first_order(balancer: balance.PCGrad, K: int = 3) -> Tensor:
    """The order the balancer draws next."""
    return balancer.next_order(K, torch.device("cpu"))


def expected_gradients(model: Model, x: Tensor, order: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """The textbook update of the encoder [P], and each head's own gradient."""
    encoder = list(model.encoder.parameters())
    losses = model.losses(x)
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, encoder, retain_graph=True)])
        for loss in losses.values()
    ]
    heads = {
        name: list(torch.autograd.grad(sum(losses.values()), list(head.parameters()), retain_graph=True))
        for name, head in model.heads.items()
    }
    return textbook_pcgrad(torch.stack(rows), order), heads


def flat_gradient(model: Model) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.encoder.parameters()])


def no_hooks(model: Model) -> bool:
    return not any(p._post_accumulate_grad_hooks for p in model.parameters())


def loss_of(x: Tensor) -> dict[str, Tensor]:
    """Two losses of one parameter."""
    return {"seg": x.sum(), "cls": x.square().sum()}
