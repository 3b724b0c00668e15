"""A small model with conflicting tasks for training loops, and the gradients PCGrad should leave in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastmtl import balance
from helpers.gradients import textbook_pcgrad

CLOSE = {"rtol": 1e-9, "atol": 1e-13}


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


def shared_of(model: Model) -> list[nn.Parameter]:
    """As `Model.shared`; the unused ones come first, because GradNorm measures the last layer."""
    return [*model.unused.parameters(), *model.encoder.parameters()]


def losses_of(model: Model, x: Tensor, z: Tensor | None = None) -> dict[str, Tensor]:
    """Losses of a regression: positive, and means over the samples; `z` are the encoder's features."""
    z = model.encoder(x) if z is None else z
    targets = {"a": 0.5, "b": -1.0, "c": 2.0}
    return {name: (model.heads[name](z) - target).square().mean() for name, target in targets.items()}


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


def check_heads(model: Model, x: Tensor) -> None:
    """Every head has its own plain gradient."""
    heads = list(model.heads.parameters())
    plain = torch.autograd.grad(sum(model.losses(x).values()), heads)
    for parameter, gradient in zip(heads, plain, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, **CLOSE)


def all_gradients(model: nn.Module) -> list[Tensor | None]:
    """A copy of every `.grad`."""
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_steps_equal(found: list, expected: list, **tolerance: Any) -> None:
    """Lists of what each step left: tensors or None."""
    for a, b in zip(found, expected, strict=True):
        for ours, plain in zip(a, b, strict=True):
            assert (ours is None) == (plain is None)
            if ours is not None:
                torch.testing.assert_close(ours, plain, **(tolerance or CLOSE))


def loss_of(x: Tensor) -> dict[str, Tensor]:
    """Two losses of one parameter."""
    return {"seg": x.sum(), "cls": x.square().sum()}
