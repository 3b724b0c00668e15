"""Batching rules of the ops for `torch.func.vmap`, and for batched grads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch._functorch.autograd_function import VmapInfo


def loop(run: Callable[..., Any], info: VmapInfo, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    """A batching rule for any op: one call per sample."""
    results = [
        run(*(_select(*pair, index) for pair in zip(arguments, in_dims, strict=True)))
        for index in range(info.batch_size)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _select(value: object, dim: Any, index: int) -> object:
    if isinstance(value, Tensor):
        return value if dim is None else value.select(dim, index)
    if isinstance(value, list | tuple) and isinstance(dim, list | tuple):
        return [_select(*pair, index) for pair in zip(value, dim, strict=True)]
    return value


def fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The tensor with the vmapped dim merged into the batch, [size * B, ...]; repeated if it has none."""
    return (tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)).flatten(0, 1)


def loop_over_grads(backward: Callable[..., list[Tensor]], grad: Tensor, *rest: Any) -> list[Tensor]:
    """A batching rule for the backward of an op with a list of tensors, for `torch.autograd.grad(...,
    is_grads_batched=True)`: it runs on torch's legacy vmap, which does not support lists of tensors."""
    batching: Any = torch
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    rows = batching._remove_batch_dim(grad, level, 1, 0).unbind()
    stacked = map(torch.stack, zip(*(backward(row, *rest) for row in rows), strict=True))
    return [batching._add_batch_dim(gradient, 0, level) for gradient in stacked]
