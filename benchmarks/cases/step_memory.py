"""Peak memory of one step, without model, optimizer state and batch: gradients, arena, activations. Read `peak_bytes`.

The shared part has many parameters and few activations: in this case K gradients cost most. Each run creates a new
balancer, otherwise the arena, which is kept between steps, would count as memory held before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastmtl import balance

from ..registry import Case, Inputs, Run, register

WIDTH, BATCH = 1024, 16
Step = Callable[[nn.ModuleDict, torch.optim.Optimizer, dict[str, Tensor]], None]


def _make(num_tasks: int) -> Callable[[torch.device], Inputs]:
    def make(device: torch.device) -> Inputs:
        torch.manual_seed(0)
        encoder = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(WIDTH, WIDTH), nn.GELU())))
        heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(num_tasks))
        model = nn.ModuleDict({"encoder": encoder, "heads": heads}).to(device)
        return {"model": model, "x": torch.randn(BATCH, WIDTH, device=device), "device": device}

    return make


def _losses(inputs: Inputs, model: nn.ModuleDict) -> dict[str, Tensor]:
    z = model["encoder"](inputs["x"].to(next(model.parameters()).dtype))
    heads = enumerate(model["heads"])  # type: ignore[arg-type]
    return {f"task {k}": (head(z) - k).square().mean() for k, head in heads}


def _contender(step: Step) -> Callable[[Inputs], Run]:
    def prepare(inputs: Inputs) -> Run:
        model = inputs["model"]
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # makes its state
        optimizer.zero_grad()

        def run() -> tuple[Tensor, ...]:
            losses = _losses(inputs, model)
            step(model, optimizer, losses)
            optimizer.zero_grad()
            return (torch.stack([loss.detach() for loss in losses.values()]),)

        return run

    return prepare


def _ours(model: Any, optimizer: torch.optim.Optimizer, losses: dict[str, Tensor]) -> None:
    balance.FusedStep(optimizer)(balance.PCGrad(), losses, model["encoder"].parameters())


def _unfused(model: Any, optimizer: torch.optim.Optimizer, losses: dict[str, Tensor]) -> None:
    balance.PCGrad().backward(losses, model["encoder"].parameters())
    optimizer.step()


def _plain(model: Any, optimizer: torch.optim.Optimizer, losses: dict[str, Tensor]) -> None:
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()


def _torchjd(model: Any, optimizer: torch.optim.Optimizer, losses: dict[str, Tensor]) -> None:
    from torchjd.aggregation import PCGrad, Sum
    from torchjd.autojac import backward, jac_to_grad

    shared, heads = list(model["encoder"].parameters()), list(model["heads"].parameters())
    backward(list(losses.values()), inputs=[*shared, *heads], parallel_chunk_size=1)
    jac_to_grad(shared, PCGrad())
    jac_to_grad(heads, Sum())
    optimizer.step()


def _truth(inputs: Inputs) -> tuple[Tensor, ...]:
    model = copy.deepcopy(inputs["model"]).double()
    return (torch.stack([loss.detach() for loss in _losses(inputs, model).values()]),)


for _tasks in (2, 4, 8):
    register(
        Case(
            op="step_memory",
            shape=f"K={_tasks}, P={4 * WIDTH * (WIDTH + 1):,} float32, B={BATCH}",
            mode="PCGrad + AdamW",
            make=_make(_tasks),
            contenders={
                "fastmtl": _contender(_ours),
                "fastmtl PCGrad + AdamW(fused)": _contender(_unfused),
                "plain sum of losses": _contender(_plain),
                "TorchJD PCGrad": _contender(_torchjd),
            },
            min_bytes=0,
            tolerance=1e-4,
            truth=_truth,
        )
    )
