"""Checks of what a loader hands to a stain normaliser with each batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def check_slides(slides: Sequence[str] | None, images: Tensor) -> list[str]:
    """One key for each image; "" throughout for None."""
    if slides is None:
        return [""] * len(images)
    if isinstance(slides, str) or not isinstance(slides, Iterable) or not all(isinstance(key, str) for key in slides):
        raise TypeError(f"`slides` must be a list of {len(images)} keys, one for each image; got {slides!r}.")
    if len(slides) != len(images):
        raise ValueError(f"`slides` must have {len(images)} keys, one for each image; got {len(slides)}.")
    return list(slides)


def check_key(key: object) -> None:
    if not isinstance(key, str) or not key:
        raise ValueError(f'`key` must be a slide\'s name, and "" stands for none; got {key!r}.')


def check_augmentation(augmentation: Sequence[float]) -> tuple[float, float]:
    """Sigma of alpha and of beta."""
    numbers = augmentation if isinstance(augmentation, Sequence) else ()
    if len(numbers) != 2 or not all(isinstance(sigma, int | float) and 0 <= sigma <= 1 for sigma in numbers):
        raise ValueError(f"`augmentation` must be two numbers in 0..1, of alpha and of beta; got {augmentation!r}.")
    return float(numbers[0]), float(numbers[1])


def check_colour(colour: Tensor | None, images: Tensor) -> Tensor | None:
    return _check("colour", colour, (len(images), 3, 4))


def check_draws(draws: Tensor | None, images: Tensor) -> Tensor | None:
    """On the images' device."""
    draws = _check("draws", draws, (len(images), 4))
    if draws is None:
        return None
    if draws.device.type == "cpu" and not bool(((draws >= 0) & (draws <= 1)).all()):
        raise ValueError("`draws` must lie in 0..1; got some beyond, or NaN. Draw them with torch.rand.")
    return draws.to(images.device, non_blocking=True)


def _check(name: str, value: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a Tensor; got {type(value).__name__}. Convert it: torch.from_numpy.")
    if tuple(value.shape) != shape or value.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"`{name}` must be float32 {list(shape)}; got {value.dtype} {list(value.shape)}.")
    return value
