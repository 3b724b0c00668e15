"""PCGrad on K flattened gradients of P shared parameters: Gram, weights and combine, against the pairwise loop."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmtl import ops

from ..registry import Case, Inputs, Run, register


def _make(num_tasks: int, num_parameters: int):
    def make(device: torch.device) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        jacobian = torch.randn(num_tasks, num_parameters, generator=generator)
        jacobian -= 0.9 * jacobian.mean(0)  # every pair opposed, as gradients are when surgery is wanted
        order = torch.stack([torch.randperm(num_tasks - 1, generator=generator) for _ in range(num_tasks)])
        order += order >= torch.arange(num_tasks)[:, None]  # row i permutes the tasks other than i
        return {"J": jacobian.to(device), "order": order.to(device)}

    return make


def ours(inputs: Inputs) -> Run:
    J, order = inputs["J"], inputs["order"]
    return lambda: (ops.combine(J, ops.pcgrad_weights(ops.gram(J), order)),)


def loop(inputs: Inputs) -> Run:
    """The paper's algorithm on whole gradients, as published code writes it."""
    J, order = inputs["J"], inputs["order"].tolist()

    def run() -> tuple[Tensor, ...]:
        projected = []
        for i, others in enumerate(order):
            g = J[i].clone()
            for j in others:
                dot = torch.dot(g, J[j])
                if dot < 0:
                    g -= dot / torch.dot(J[j], J[j]) * J[j]
            projected.append(g)
        return (torch.stack(projected).sum(0),)

    return run


def torchjd(inputs: Inputs) -> Run:
    from torchjd.aggregation import PCGrad

    aggregator, J = PCGrad(), inputs["J"]
    # TorchJD draws each task's order over all tasks, and skips the task itself.
    orders = [torch.tensor([*row, i]) for i, row in enumerate(inputs["order"].tolist())]

    def run() -> tuple[Tensor, ...]:
        draws = iter(orders)
        randperm = torch.randperm
        torch.randperm = lambda *_, **__: next(draws)  # our order, so that the results can be compared
        try:
            return (aggregator(J),)
        finally:
            torch.randperm = randperm

    return run


def libmtl(inputs: Inputs) -> Run:
    from ..peers.libmtl import pcgrad

    return pcgrad(inputs["J"], inputs["order"].tolist())


def _floor(inputs: Inputs) -> Run:
    """The unavoidable part: read J twice, write P numbers once. Returns our answer, computed beforehand."""
    J, answer = inputs["J"], ours(inputs)()
    out = torch.empty_like(answer[0])

    def run() -> tuple[Tensor, ...]:
        for _ in range(2):
            J.sum()
        out.fill_(1.0)
        return answer

    return run


def truth(inputs: Inputs) -> tuple[Tensor, ...]:
    return loop({"J": inputs["J"].double(), "order": inputs["order"]})()


for _tasks, _figures in {
    2: {},
    3: {"pairwise loop": 20, "LibMTL PCGrad": 20, "TorchJD PCGrad": 3.5},
    5: {},
    8: {"pairwise loop": 40, "LibMTL PCGrad": 40, "TorchJD PCGrad": 3},
}.items():
    register(
        Case(
            op="pcgrad",
            shape=f"K={_tasks}, P=11,000,000 float32",
            mode="gram + weights + combine",
            make=_make(_tasks, 11_000_000),
            contenders={
                "fastmtl": ours,
                "read J twice, write P": _floor,
                "TorchJD PCGrad": torchjd,
                "LibMTL PCGrad": libmtl,
                "pairwise loop": loop,
            },
            min_bytes=4 * 11_000_000 * (2 * _tasks + 1),
            tolerance=5e-3,  # the float32 loops' own error; ours is far below
            truth=truth,
            figures=_figures,
        )
    )
