"""Properties every fused op has, stated once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Tolerance on top of the naive formula's own error, by the dtype of the inputs.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float16: 1e-3}


def assert_within_budget(result: Tensor, naive: Tensor, truth: Tensor, dtype: torch.dtype, message: str = "") -> None:
    """The kernel may err as much as the plain formula in the inputs' dtype does, plus a little; scaled by the truth."""
    scale = max(1.0, truth.abs().max().item())
    error = (result.double() - truth).abs().max().item() / scale
    budget = (naive.double() - truth).abs().max().item() / scale + TOLERANCE[dtype]
    assert error <= budget, f"error {error:.3g} exceeds the budget {budget:.3g} {message}"


def assert_bit_equal(results: list[tuple[Tensor, ...]]) -> None:
    """Every run gave the same bits, NaNs included."""
    first = results[0]
    for other in results[1:]:
        for a, b in zip(first, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def assert_equals_definition(
    loss: Callable[..., Tensor], backend: str, input: Tensor, target: Tensor, tolerance: float = 2e-6, **options: object
) -> None:
    """Loss and gradient of a backend against those of the definition in float64 on the same numbers."""
    doubled = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in options.items()}
    value, gradient = loss_and_gradient(lambda x: loss(x, target, backend=backend, **options), input)
    exact = loss_and_gradient(lambda x: loss(x, target, backend="reference", **doubled), input.double())
    assert value.dtype == torch.float32
    scales = [part.abs().max().item() for part in exact]
    torch.testing.assert_close(value.double(), exact[0], rtol=tolerance, atol=tolerance * max(1.0, scales[0]))
    step = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(input.dtype, tolerance)
    # Half gradients below the smallest normal number lose digits in every kernel.
    small = tolerance * scales[1] + (6e-8 if input.dtype == torch.float16 else 1e-30)
    torch.testing.assert_close(gradient.double(), exact[1], rtol=step, atol=small)


def loss_and_gradient(
    loss: Callable[[Tensor], Tensor], input: Tensor, grad: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """loss(input) and its gradient; input keeps its strides. `grad` of None counts the losses 1, 2, 3, ..."""
    leaf = input.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    value = loss(leaf)
    if grad is None:
        grad = torch.arange(1, value.numel() + 1, dtype=value.dtype, device=value.device).view(value.shape)
    (gradient,) = torch.autograd.grad(value, leaf, grad)
    assert gradient.dtype == leaf.dtype
    assert gradient.shape == leaf.shape
    return value.detach(), gradient
