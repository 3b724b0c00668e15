"""Tensors [B, C, *spatial] as [batch, channel, pixel], one stride each: so that kernels read most layouts in place."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .buffer_cache import WORTHWHILE, Recycled
from .pointers import address, element

SMALL_PLANE = 32  # as kSmallPlane in csrc/core/planes.cpp
ABSENT = (0, 0, 0, 0, 0)  # csrc reads it as "no such tensor"


def strides(tensor: Tensor) -> tuple[int, int, int] | None:
    """Batch, channel and pixel stride in elements; None if the spatial dims have no common stride.

    Contiguous, channels_last and expanded tensors have one; spatial crops and transposes have none.
    """
    if tensor.is_contiguous():
        return tensor.stride(0), tensor.stride(1), 1
    pixel = expected = None
    for size, stride in zip(reversed(tensor.shape[2:]), reversed(tensor.stride()[2:]), strict=True):
        if size == 1:
            continue
        if pixel is None:
            pixel = stride
        elif stride != expected:
            return None
        expected = stride * size
    return tensor.stride(0), tensor.stride(1), 1 if pixel is None else pixel


def in_place(tensor: Tensor) -> Tensor:
    """The tensor if it has `strides`, else a contiguous copy."""
    return tensor if strides(tensor) is not None else tensor.contiguous()


def mask_in_place(mask: Tensor, shape: torch.Size) -> Tensor:
    """The mask, uint8, expanded to `shape`; a copy of at most its batch and channels if only rows broadcast."""
    mask = mask.view(torch.uint8) if mask.dtype == torch.bool else mask
    expanded = mask.expand(shape)
    if strides(expanded) is not None:
        return expanded
    return mask.expand(*mask.shape[:2], *shape[2:]).contiguous().expand(shape)


def gradient_like(input: Tensor, recycled: Recycled | None = None) -> Tensor:
    """Uninitialised gradient: channels_last if the input is, else contiguous; in `recycled` memory if given."""
    layout = torch.contiguous_format
    if not input.is_contiguous():
        for rank, last in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if input.dim() == rank and input.is_contiguous(memory_format=last):
                layout = last
    if recycled is None or input.numel() * input.element_size() < WORTHWHILE:
        return torch.empty_like(input, memory_format=layout)
    stride = torch.empty_like(input, device="meta", memory_format=layout).stride()
    return recycled.empty_strided(input.size(), stride, input.dtype, input.device)


def describe(tensor: Tensor | None) -> tuple[int, int, int, int, int]:
    """(address, element code, batch, channel and pixel stride), as `planes` in csrc/bindings/view.hpp reads it."""
    if tensor is None:
        return ABSENT
    layout = strides(tensor)
    if layout is None:
        raise ValueError(f"no single pixel stride in {tuple(tensor.stride())}: pass it through `in_place` first.")
    return address(tensor), element(tensor), *layout


def pixels(tensor: Tensor) -> int:
    """The number of elements of a plane."""
    return math.prod(tensor.shape[2:])


def small_contiguous_planes(input: Tensor, target: Tensor) -> bool:
    """Whether planes are short and all tensors have the same memory order: one plane [1, 1, N] is then several times
    faster. Long planes stay separate, because each is checked for targets out of range."""
    return pixels(input) < SMALL_PLANE and input.is_contiguous() and target.is_contiguous()
