"""Convert images (tensors, NumPy arrays, PIL images, single or in a batch) to a batch, and results back to the input
form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...ops.stain.arguments import ImageLike, as_tensor
from ...ops.stain.run import Normalised


class Form(NamedTuple):
    """The form of the images that a batch was made from."""

    single: bool
    array: bool

    def give(self, part: Tensor | None) -> Any:
        """A result in the form of the input: without batch dim if it had none; an array for arrays and PIL images."""
        if part is None:
            return None
        one = part[0] if self.single else part
        return one.numpy() if self.array else one

    def give_all(self, result: Normalised) -> Normalised:
        return Normalised(*(self.give(part) for part in result))


def as_batch(images: ImageLike | Sequence[ImageLike], name: str = "images") -> tuple[Tensor, Form]:
    """The batch, not yet validated (`check_images` does that), and its original form. A list or tuple is stacked.

    Raises:
        ValueError: images of a list differ in shape, or one is not RGB.
        TypeError: an element of a list is not an image.
    """
    if isinstance(images, list | tuple):
        return _stacked(images, name), Form(False, not all(isinstance(image, Tensor) for image in images))
    tensor = as_tensor(images, name)
    if not isinstance(tensor, Tensor):
        found = type(images).__name__
        raise TypeError(f"`{name}` must be a tensor, an array or a PIL image, or a list of these; got {found}.")
    single = tensor.dim() == 3
    return tensor[None] if single else tensor, Form(single, tensor is not images)


def _stacked(images: Sequence[ImageLike], name: str) -> Tensor:
    tensors: list[Tensor] = []
    for place, image in enumerate(images):
        tensor = as_tensor(image, f"{name}[{place}]")
        if not isinstance(tensor, Tensor):
            raise TypeError(f"`{name}` must be a list of images; got {type(tensor).__name__} at {place}.")
        tensors.append(tensor)
        if tensor.shape != tensors[0].shape or tensor.dim() != 3:
            raise ValueError(
                f"`{name}` must be images [3, H, W] or [H, W, 3] of one size; got {list(tensors[0].shape)} and "
                f"{list(tensor.shape)} at {place}. Crop them, or pass them one by one."
            )
    if not tensors:
        raise ValueError(f"`{name}` must have at least one image; got an empty list.")
    return torch.stack(tensors)
