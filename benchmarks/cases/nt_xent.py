"""SimCLR's NT-Xent, forward and backward, compared with the formula in plain torch and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmtl import ops

from ..registry import Case, Contender, Inputs, Run, register

Loss = Callable[[Tensor, Tensor], Tensor]
TEMPERATURE = 0.1


def _make(pairs: int, dim: int, dtype: torch.dtype, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    z1 = torch.randn(pairs, dim, generator=generator)
    z2 = z1 + torch.randn(pairs, dim, generator=generator)  # views of one image agree, but for their noise
    return {"z1": z1.to(device, dtype).requires_grad_(), "z2": z2.to(device, dtype).requires_grad_()}


def formula(z1: Tensor, z2: Tensor) -> Tensor:
    """The plain formula: a cross-entropy over the 2N x 2N similarities."""
    z = F.normalize(torch.cat([z1, z2]))
    rows = torch.arange(len(z), device=z.device)
    similarities = (z @ z.T).div(TEMPERATURE).fill_diagonal_(-torch.inf)
    return F.cross_entropy(similarities, rows.roll(len(z1)))


def _run(loss: Loss, z1: Tensor, z2: Tensor) -> tuple[Tensor, ...]:
    value = loss(z1, z2)
    return value.detach(), *torch.autograd.grad(value, (z1, z2))


def _contender(make_loss: Callable[[], Loss]) -> Contender:
    def prepare(inputs: Inputs) -> Run:
        return partial(_run, make_loss(), inputs["z1"], inputs["z2"])

    return prepare


def _truth(inputs: Inputs) -> tuple[Tensor, ...]:
    z1, z2 = (inputs[name].detach().double().requires_grad_() for name in ("z1", "z2"))
    return _run(formula, z1, z2)


def _register(
    pairs: int, dim: int, dtype: torch.dtype = torch.float32, figures: dict[str, float] | None = None
) -> None:
    size = torch.finfo(dtype).bits // 8
    register(
        Case(
            op="nt_xent_loss",
            shape=f"N {pairs}, D {dim}, {str(dtype).removeprefix('torch.')}, T {TEMPERATURE}",
            mode="forward + backward",
            make=partial(_make, pairs, dim, dtype),
            contenders={
                "fastmtl": _contender(lambda: partial(ops.nt_xent_loss, temperature=TEMPERATURE)),
                "torch eager": _contender(lambda: formula),
                "torch.compile": _contender(lambda: torch.compile(formula)),
            },
            min_bytes=2 * pairs * dim * 3 * size,  # the rows read twice, their gradients written: products decide
            tolerance=1e-4 if dtype == torch.float32 else 0.1,
            truth=_truth,
            figures=figures or {},
        )
    )


_register(4096, 128, figures={"torch eager": 1.5})
_register(512, 128)
_register(4096, 128, torch.bfloat16)
