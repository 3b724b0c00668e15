"""From K gradients in rows to updated parameters: PCGrad, clipping and AdamW together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastmtl import balance, ops
from fastmtl.balance.arena import GradientArena
from fastmtl.balance.gradient_balancer import Rows
from fastmtl.balance.gradient_strategies import StepContext
from fastmtl.balance.single_process import SingleProcess

from ..registry import Case, Inputs, Run, register
from . import pcgrad

CLIP = 1.0
SIZES = (7_000_000, 3_000_000, 999_936, 64)  # sizes of the parameters, P = 11,000,000; a row has no gaps between them


def _make(num_tasks: int) -> Callable[[torch.device], Inputs]:
    return pcgrad._make(num_tasks, sum(SIZES))


def _optimizer(J: Tensor, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], torch.optim.Optimizer]:
    """Parameters, the same for every contender, and their AdamW.

    Its eps is as large as a clipped gradient's elements, or the sign of those near 0 would decide the parity.
    """
    source = torch.Generator().manual_seed(1)
    parameters = [torch.randn(size, generator=source).to(J.device, dtype).requires_grad_() for size in SIZES]
    return parameters, torch.optim.AdamW(parameters, lr=0.1, eps=1e-4, fused=True)


def _step(inputs: Inputs, combine: Run, dtype: torch.dtype = torch.float32) -> Run:
    """`combine` returns the gradient [P]; torch's clipping and AdamW follow."""
    parameters, optimizer = _optimizer(inputs["J"], dtype)

    def run() -> tuple[Tensor, ...]:
        for parameter, gradient in zip(parameters, combine()[0].split(SIZES), strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        return tuple(parameter.detach() for parameter in parameters)

    return run


class _FilledArena(GradientArena):
    """An arena whose rows are in memory already, without gaps between the parameters."""

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__()
        ends = torch.tensor(SIZES).cumsum(0).tolist()
        self._places = [(p, end - p.numel()) for p, end in zip(parameters, ends, strict=True)]

    def places(self, reached: list[bool]) -> Iterator[tuple[Tensor, int | None]]:
        return iter(self._places)


def ours(inputs: Inputs) -> Run:
    J, order = inputs["J"], inputs["order"]
    parameters, optimizer = _optimizer(J)
    step, balancer = balance.FusedStep(optimizer, clip_norm=CLIP), balance.PCGrad()
    context = StepContext(_FilledArena(parameters), SingleProcess(), parameters, None, True)
    sound = torch.ones((), dtype=torch.bool, device=J.device)

    def run() -> tuple[Tensor, ...]:
        G = ops.gram(J)
        w = ops.pcgrad_weights(G, order)
        step._take(Rows(balancer, J, G, w, {}, G.diagonal(), G, context, []), None, sound)
        return tuple(parameter.detach() for parameter in parameters)

    return run


def _floor(inputs: Inputs) -> Run:
    """The unavoidable part: read J twice, read and write each parameter and its moments. Returns our answer."""
    J, answer = inputs["J"], tuple(parameter.clone() for parameter in ours(inputs)())
    states = torch.zeros(3, sum(SIZES), device=J.device)

    def run() -> tuple[Tensor, ...]:
        for _ in range(2):
            J.sum()
        states.add_(1.0)
        return answer

    return run


def _truth(inputs: Inputs) -> tuple[Tensor, ...]:
    combined = pcgrad.truth(inputs)
    return _step(inputs, lambda: combined, torch.float64)()


for _tasks, _figures in {2: {}, 3: {"TorchJD + AdamW(fused)": 2.5}, 5: {}, 8: {"TorchJD + AdamW(fused)": 2.5}}.items():
    register(
        Case(
            op="fused_step",
            shape=f"K={_tasks}, P={sum(SIZES):,} float32",
            mode="PCGrad + clip + AdamW",
            make=_make(_tasks),
            contenders={
                "fastmtl": ours,
                "read J twice, move the state": _floor,
                "fastmtl PCGrad + AdamW(fused)": lambda inputs: _step(inputs, pcgrad.ours(inputs)),
                "TorchJD + AdamW(fused)": lambda inputs: _step(inputs, pcgrad.torchjd(inputs)),
                "LibMTL + AdamW(fused)": lambda inputs: _step(inputs, pcgrad.libmtl(inputs)),
                "pairwise loop + AdamW(fused)": lambda inputs: _step(inputs, pcgrad.loop(inputs)),
            },
            min_bytes=4 * sum(SIZES) * (2 * _tasks + 6),
            tolerance=1e-3,
            truth=_truth,
            figures=_figures,
        )
    )
