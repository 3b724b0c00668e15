"""Batches of RGB bytes in the memory layout of the stain kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.buffer_cache import Recycled
from ..core.pointers import address, element

_OUTPUTS = Recycled()


class Pixels(NamedTuple):
    """Uint8 RGB [B, 3, H, W] in any layout whose pixels have one stride, and which pixels belong to the image."""

    images: Tensor
    inside: Tensor | None  # uint8 [B, H, W], contiguous

    @property
    def batch(self) -> int:
        return self.images.shape[0]

    @property
    def size(self) -> int:
        """Pixels of one image."""
        return self.images.shape[2] * self.images.shape[3]

    def describe(self) -> tuple[int, ...]:
        """As csrc/bindings/stain.cpp expects it."""
        images = self.images
        strides = (images.stride(0), images.stride(1), images.stride(3))
        return (images.data_ptr(), self.batch, self.size, *strides, address(self.inside))

    def planes(self) -> Tensor:
        """[B, 3, N] of the same bytes."""
        return self.images.flatten(2)

    def kept(self) -> Tensor | None:
        """Bool [B, N]: the pixels inside; None: all."""
        return None if self.inside is None else self.inside.flatten(1) != 0

    def each(self) -> Iterator[Pixels]:
        """One image at a time."""
        for b in range(self.batch):
            yield Pixels(self.images[b : b + 1], None if self.inside is None else self.inside[b : b + 1])


def readable(images: Tensor, inside: Tensor | None) -> Pixels:
    """Copies only tensors without a single pixel stride."""
    row_after_row = images.stride(2) == images.shape[3] * images.stride(3) or images.shape[2] == 1
    return Pixels(images if row_after_row else images.contiguous(), inside)


def new_output(images: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor with the shape and memory order of `images` [B, 3, H, W]."""
    size, stride = images.shape, output_strides(images)
    if images.device.type == "cpu":  # fresh pages would take longer than writing the output
        return _OUTPUTS.empty_strided(size, stride, dtype, images.device)
    return torch.empty_strided(size, stride, dtype=dtype, device=images.device)


def output_strides(images: Tensor) -> tuple[int, ...]:
    """Dense, planes or interleaved as `images` are."""
    _, _, height, width = images.shape
    interleaved = images.stride(1) == 1 and height * width > 1
    return (3 * height * width, *((1, 3 * width, 3) if interleaved else (height * width, width, 1)))


def describe_output(out: Tensor, half_up: bool) -> tuple[int, ...]:
    """As csrc/bindings/stain.cpp expects it."""
    return (out.data_ptr(), element(out), out.stride(0), out.stride(1), out.stride(3), int(half_up))
