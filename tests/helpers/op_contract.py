"""What the contract suite does with an op of `helpers.op_specs`: choose, call, differentiate, compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from helpers.inputs import generator
from helpers.op_backends import needs_cpp, needs_triton
from helpers.op_inputs import Call
from helpers.op_spec import PIXELS, OpSpec
from helpers.op_specs import SPECS


def over(chosen: Callable[[OpSpec], bool] = lambda spec: True) -> pytest.MarkDecorator:
    specs = [spec for spec in SPECS if chosen(spec)]
    return pytest.mark.parametrize("spec", specs, ids=lambda spec: spec.name)


def with_kernels(
    chosen: Callable[[OpSpec], bool] = lambda spec: True, slow_triton: bool = False
) -> pytest.MarkDecorator:
    """`slow_triton`: in Triton's interpreter the test takes minutes, so its Triton cases are slow tests."""
    pairs = [(spec, backend) for spec in SPECS if chosen(spec) for backend in spec.kernels]
    marks = {"cpp": [needs_cpp], "triton": [needs_triton, *[pytest.mark.slow] * slow_triton]}
    return pytest.mark.parametrize(
        ("spec", "backend"), [pytest.param(s, b, marks=marks[b], id=f"{s.name}-{b}") for s, b in pairs]
    )


def cases(spec: OpSpec, call: Call) -> list[dict[str, Any]]:
    first = call.inputs[0] if call.inputs else next(iter(call.rest.values()))
    found = [{}, *(dict(case(first.shape[1])) for case in spec.cases)]
    for options in found:
        if options.get("mask") is PIXELS:
            options["mask"] = torch.rand(call.rest["target"].shape, generator=generator(3)) < 0.67
    return found


def outputs(spec: OpSpec, inputs: tuple[Tensor, ...], rest: dict[str, Any]) -> tuple[Tensor, ...]:
    found = spec.function(*inputs, **rest)
    return (found,) if isinstance(found, Tensor) else tuple(found)


def total(spec: OpSpec, inputs: tuple[Tensor, ...], rest: dict[str, Any]) -> Tensor:
    """A scalar in which every output has a different weight."""
    flat = torch.cat([part.flatten() for part in outputs(spec, inputs, rest)])
    return (flat * torch.linspace(0.5, 1.5, flat.numel(), dtype=flat.dtype, device=flat.device)).sum()


def run(spec: OpSpec, call: Call, **options: Any) -> tuple[Tensor, ...]:
    """All outputs, and the gradients of their weighted sum; the inputs keep their strides."""
    rest = call.rest | options
    leaves = tuple(x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in call.inputs)
    found = outputs(spec, leaves, rest)
    if not spec.differentiable:
        return found
    gradients = torch.autograd.grad(total(spec, leaves, rest), leaves)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert (gradient.dtype, gradient.shape) == (leaf.dtype, leaf.shape)
    return *(part.detach() for part in found), *gradients


def to(call: Any, target: torch.dtype | str) -> Any:
    """`call` with its floating tensors in another dtype, or with all tensors on another device."""

    def move(value: Any) -> Any:
        moves = isinstance(value, Tensor) and (isinstance(target, str) or value.is_floating_point())
        return value.to(target) if moves else value

    return tree_map(move, call)


def assert_near(found: tuple[Tensor, ...], exact: tuple[Tensor, ...], tolerance: float) -> None:
    """Close relative to the largest number, with NaN at the same places."""
    for a, b in zip(found, exact, strict=True):
        scale = b.double().abs().max().clamp(min=1e-30).cpu()
        torch.testing.assert_close(a.cpu().double() / scale, b.cpu().double() / scale, rtol=0, atol=tolerance)
