"""A training loop with missing labels, on one rank's samples or on all of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastmtl import balance
from helpers.loop import inputs

TASKS = "abc"
CUTS = ((0, 5), (5, 9))  # samples of each rank: unequal


def labelled(n: int = 9) -> Tensor:
    """bool [n, 3]: unequal counts, and nobody on rank 1 has a label for task c."""
    has_label = torch.rand(n, 3, generator=torch.Generator().manual_seed(5)) < 0.7
    has_label[0], has_label[5, :2], has_label[5:, 2] = True, True, False
    return has_label


def means(model: nn.Module, x: Tensor, has_label: Tensor, z: Tensor | None = None) -> dict[str, Tensor]:
    """Mean over labelled samples, 0 without any; linear in the samples."""
    z = model.encoder(x) if z is None else z
    losses = {}
    for column, (name, target) in enumerate(zip(TASKS, (0.5, -1.0, 2.0), strict=True)):
        per_sample = (model.heads[name](z) - target).square().mean(1)
        losses[name] = (per_sample * has_label[:, column]).sum() / has_label[:, column].sum().clamp(min=1)
    return losses


def train(balancer, model, steps, *, rank=None, micro=1, features=False, root=None, shared=None) -> dict[str, Tensor]:
    """`steps` of SGD; on the whole batch if `rank` is None, else on its part. Returns what is left."""
    shared = list(model.encoder.parameters()) if shared is None else shared
    parameters = [*(shared if root is not None else model.encoder.parameters()), *model.heads.parameters()]
    parameters = parameters if root is None else list(root)
    optimizer = torch.optim.SGD([*parameters, *balancer.parameters()], lr=0.05)
    logs = []
    for number in steps:
        x, has_label = inputs(n=9, seed=number), labelled()
        # Micro-batch i of the whole batch holds the i-th parts of both ranks.
        own = [slice(*cut) for cut in CUTS]
        parts = [[torch.arange(9)[cut].chunk(micro)[i] for cut in own] for i in range(micro)]
        chosen = [torch.cat(part) if rank is None else part[rank] for part in parts]
        total = has_label[torch.cat(chosen)].sum(0)
        optimizer.zero_grad()
        for i, rows in enumerate(chosen):
            z = balance.cut(model.encoder(x[rows])) if features else None
            local = means(model, x[rows], has_label[rows], z)
            if rank is None:
                counts = has_label[rows].sum(0)
                share = (counts.double() / total.clamp(min=1)).unbind()
                losses = {name: loss * part for (name, loss), part in zip(local.items(), share, strict=True)}
            else:
                losses = balance.global_losses(local, has_label[rows].sum(0), total=total)
            extra = {"features": z} if features else {}
            done = balancer.backward(
                losses, shared, last=i == micro - 1, active=has_label[rows].any(0), scale=8.0, **extra
            )
        for parameter in (*parameters, *balancer.parameters()):
            if parameter.grad is not None:
                parameter.grad /= 8.0
        logs.append(done["weights"])
        grads = [p.grad.clone() for p in parameters if p.grad is not None]
        optimizer.step()

        def again(x=x, has_label=has_label) -> dict[str, Tensor]:
            if rank is None:
                return means(model, x, has_label)
            mine = slice(*CUTS[rank])
            return balance.global_losses(means(model, x[mine], has_label[mine]), has_label[mine].sum(0))

        with torch.no_grad():
            balancer.after_step(again)
        balancer.on_epoch()
    return {
        "weights": torch.stack(logs),
        "gradients": torch.cat([_whole(grad).flatten() for grad in grads]),
        "parameters": torch.cat([_whole(p.detach()).flatten() for p in parameters]),
        "learned": torch.cat([torch.zeros(1), *(p.detach().flatten() for p in balancer.parameters())]),
        "telemetry": torch.cat([v.double().flatten() for v in done.values()]),
    }


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def left(model: nn.Module) -> dict[str, Tensor]:
    """All gradients, and which are None."""
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    missing = torch.tensor([float(p.grad is None) for p in model.parameters()])
    return {"gradients": torch.cat([grad.flatten() for grad in grads]), "missing": missing}
