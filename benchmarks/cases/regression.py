"""Squared and smooth absolute errors of reconstructions, forward and backward: plain torch, torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmtl import ops

from ..registry import Case, Contender, Inputs, Run, register

Loss = Callable[[Tensor, Tensor], Tensor]
SHAPE = (8, 3, 512, 512)


def _make(target_dtype: torch.dtype, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, SHAPE, generator=generator)
    prediction = image + 20 * torch.randn(SHAPE, generator=generator)
    if target_dtype.is_floating_point:  # normalised beforehand, as most data pipelines do
        image, prediction = image / 64 - 2, prediction / 64 - 2
    return {"input": prediction.to(device).requires_grad_(), "target": image.to(device, target_dtype)}


def _run(loss: Loss, input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    value = loss(input, target)
    return value.detach(), torch.autograd.grad(value, input)[0]


def _contender(make_loss: Callable[[], Loss]) -> Contender:
    def prepare(inputs: Inputs) -> Run:
        return partial(_run, make_loss(), inputs["input"], inputs["target"])

    return prepare


def _truth(plain: Loss, inputs: Inputs) -> tuple[Tensor, ...]:
    return _run(plain, inputs["input"].detach().double().requires_grad_(), inputs["target"])


def _register(name: str, ours: Loss, torchs: Loss, target_dtype: torch.dtype) -> None:
    def plain(input: Tensor, target: Tensor) -> Tensor:
        return torchs(input, target.to(input.dtype))

    size = torch.Size(SHAPE).numel()
    register(
        Case(
            op=name,
            shape=f"{list(SHAPE)} float32, {str(target_dtype).removeprefix('torch.')} target",
            mode="forward + backward",
            make=partial(_make, target_dtype),
            contenders={
                "fastmtl": _contender(lambda: ours),
                "torch eager": _contender(lambda: plain),
                "torch.compile": _contender(lambda: torch.compile(plain)),
            },
            # Forward reads input and target; backward reads both again and writes the gradient.
            min_bytes=size * (2 * (4 + target_dtype.itemsize) + 4),
            tolerance=1e-4,
            truth=partial(_truth, plain),
        )
    )


for _dtype in (torch.float32, torch.uint8):
    _register("mse_loss", ops.mse_loss, F.mse_loss, _dtype)
    _register("smooth_l1_loss", ops.smooth_l1_loss, F.smooth_l1_loss, _dtype)
