"""Inputs of deep supervision: heads at several strides, and the gradient of each."""

from __future__ import annotations

import torch

from helpers.inputs import generator, segmentation

HOW = ("nearest", "area", "max")


def pyramid(size, strides, channels=2, dtype=torch.float32, target_dtype=torch.uint8, seed=0):
    """Logits of one head per element of `strides` (a number, or one per dim), and the target of all."""
    _, target = segmentation((2, channels, *size), target_dtype=target_dtype, seed=seed)
    source, heads = generator(seed + 1), []
    for stride in strides:
        each = [stride] * len(size) if isinstance(stride, int) else stride
        own = [full // one for full, one in zip(size, each, strict=True)]
        heads.append((torch.randn(2, channels, *own, generator=source) * 3).to(dtype))
    return heads, target


def values_and_gradients(heads, loss) -> tuple[torch.Tensor, ...]:
    """The losses and every head's gradient, the losses counted 1, 2, 3, ..."""
    leaves = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in heads]
    value = loss(leaves)
    grad = torch.arange(1, value.numel() + 1, dtype=value.dtype).view(value.shape)
    gradients = torch.autograd.grad(value, leaves, grad)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert (gradient.dtype, gradient.shape) == (leaf.dtype, leaf.shape)
    return value.detach(), *gradients
