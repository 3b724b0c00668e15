"""Batches of RGB bytes as the stain kernels read them, and the checks that stand before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core import checks
from ..core.buffer_cache import Recycled
from ..core.pointers import address, element

_OUTPUTS = Recycled()
METHODS = ("macenko", "vahadane", "ruifrok", "reinhard", "modified_reinhard")


class Pixels(NamedTuple):
    """Uint8 RGB [B, 3, H, W] in any layout whose pixels have one stride, and what of it is an image."""

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
        """As csrc/bindings/stain.cpp wants it."""
        images = self.images
        strides = (images.stride(0), images.stride(1), images.stride(3))
        return (images.data_ptr(), self.batch, self.size, *strides, address(self.inside))

    def planes(self) -> Tensor:
        """[B, 3, N] of the same bytes."""
        return self.images.flatten(2)

    def kept(self) -> Tensor | None:
        """Bool [B, N]: what is inside; None for everything."""
        return None if self.inside is None else self.inside.flatten(1) != 0

    def each(self) -> Iterator[Pixels]:
        """One image at a time."""
        for b in range(self.batch):
            yield Pixels(self.images[b : b + 1], None if self.inside is None else self.inside[b : b + 1])


def is_interleaved(images: Tensor) -> bool:
    """Whether the last dim is the colour; what is 3 on both sides counts as planes."""
    return images.shape[1] != 3


def as_tensor(image: Any, name: str) -> Any:
    """NumPy arrays and PIL images as tensors, in their layout; anything else as it is.

    Raises:
        ValueError: a PIL image that is not RGB.
    """
    if hasattr(image, "__array_interface__") and hasattr(image, "mode"):
        if image.mode != "RGB":
            raise ValueError(f'`{name}` must be RGB; got an image of mode {image.mode}. Convert it: .convert("RGB").')
        return torch.from_numpy(np.array(image))
    if isinstance(image, np.ndarray):
        if not image.dtype.isnative or image.dtype.kind not in "biufc":
            raise ValueError(f"`{name}` must be uint8 grey levels 0..255; got an array of {image.dtype.str}.")
        # torch takes no negative strides, and warns of arrays that cannot be written.
        return torch.from_numpy(image if image.flags.c_contiguous and image.flags.writeable else image.copy())
    return image


def check_images(images: object, name: str = "images") -> Tensor:
    """Uint8 RGB [B, 3, H, W] or [B, H, W, 3], not empty; returned as [B, 3, H, W]."""
    if isinstance(images, np.ndarray):
        raise TypeError(f"`{name}` must be a Tensor; got an array. Convert it: torch.from_numpy({name}).")
    checks.tensor(name, images)
    assert isinstance(images, Tensor)
    shape = list(images.shape)
    if images.dim() != 4:
        advice = f"Add the batch: {name}.unsqueeze(0)." if images.dim() == 3 else "Stack the tiles."
        raise ValueError(f"`{name}` must be [B, 3, H, W] or [B, H, W, 3]; got {shape}. {advice}")
    if images.dtype != torch.uint8:
        advice = f"Normalise stains before images become floats, or convert: (255 * {name}).round().byte()."
        if not images.is_floating_point():
            advice = f"Where they are 0..255 already, convert: {name}.to(torch.uint8)."
        found = checks.names((images.dtype,))
        raise ValueError(f"`{name}` must be uint8 grey levels 0..255; got {found}. {advice}")
    if shape[1] != 3 and shape[3] != 3:
        alpha = "Drop the alpha channel: images[..., :3] or images[:, :3]." if 4 in (shape[1], shape[3]) else ""
        raise ValueError(f"`{name}` must have 3 channels, in dim 1 or in the last; got {shape}. {alpha}".rstrip())
    if images.numel() == 0:
        raise ValueError(f"`{name}` must have at least one pixel; got {shape}. Skip the empty batch.")
    return images.permute(0, 3, 1, 2) if is_interleaved(images) else images


def check_inside(inside: object, images: Tensor) -> Tensor | None:
    """Bool or uint8 [B, H, W] of where there is an image; as contiguous uint8."""
    if inside is None:
        return None
    checks.tensor("inside", inside)
    assert isinstance(inside, Tensor)
    checks.dtype("inside", inside, (torch.bool, torch.uint8), "Compare it with what marks the fill.")
    wanted = [images.shape[0], *images.shape[2:]]
    if list(inside.shape) != wanted:
        raise ValueError(f"`inside` must be [B, H, W] = {wanted} like `images`; got {list(inside.shape)}.")
    if inside.device != images.device:
        raise ValueError(f"`inside` must be on {images.device} like `images`; got {inside.device}. Move it first.")
    return inside.contiguous().view(torch.uint8)


def readable(images: Tensor, inside: Tensor | None) -> Pixels:
    """Copies only what has no single stride from pixel to pixel."""
    row_after_row = images.stride(2) == images.shape[3] * images.stride(3) or images.shape[2] == 1
    return Pixels(images if row_after_row else images.contiguous(), inside)


def new_output(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Uninitialised, of the shape and the order of dims in memory that `images` [B, 3, H, W] has."""
    size, stride = images.shape, output_strides(images)
    if images.device.type == "cpu":  # fresh pages would take longer than what is written to them
        return _OUTPUTS.empty_strided(size, stride, dtype, images.device)
    return torch.empty_strided(size, stride, dtype=dtype, device=images.device)


def output_strides(images: Tensor) -> tuple[int, ...]:
    """Dense, planes or interleaved as `images` are."""
    _, _, height, width = images.shape
    interleaved = images.stride(1) == 1 and height * width > 1
    return (3 * height * width, *((1, 3 * width, 3) if interleaved else (height * width, width, 1)))


def describe_output(out: Tensor, half_up: bool) -> tuple[int, ...]:
    """As csrc/bindings/stain.cpp wants it."""
    return (out.data_ptr(), element(out), out.stride(0), out.stride(1), out.stride(3), int(half_up))
