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
