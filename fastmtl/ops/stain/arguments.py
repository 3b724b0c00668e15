"""Checks of the arguments of stain normalisation; each message says what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ...reference.stain_conventions import CONVENTIONS, Convention
from ..core import checks
from .fit import are_apart

if TYPE_CHECKING:
    from PIL.Image import Image

ImageLike: TypeAlias = "Tensor | np.ndarray | Image"
"""A batch of images, or one."""
TargetLike: TypeAlias = "ImageLike | tuple[object, object] | Sequence[object] | None"
"""An image, or a pair of numbers as tensors, arrays or lists."""
METHODS = ("macenko", "vahadane", "ruifrok", "reinhard", "modified_reinhard")
LAB = ("reinhard", "modified_reinhard")
DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
MIN_TISSUE = 256
LEAST_STD = 1e-4


def is_interleaved(images: Tensor) -> bool:
    """Whether the last dim is the colour; images with 3 in both dims count as planes."""
    return images.shape[1] != 3


def as_tensor(image: Any, name: str) -> object:
    """NumPy arrays and PIL images as tensors, in their layout; other objects unchanged.

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
        # torch does not accept negative strides, and warns about read-only arrays.
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
            advice = f"If they are already 0..255, convert: {name}.to(torch.uint8)."
        found = checks.names((images.dtype,))
        raise ValueError(f"`{name}` must be uint8 grey levels 0..255; got {found}. {advice}")
    if shape[1] != 3 and shape[3] != 3:
        alpha = "Drop the alpha channel: images[..., :3] or images[:, :3]." if 4 in (shape[1], shape[3]) else ""
        raise ValueError(f"`{name}` must have 3 channels, in dim 1 or in the last dim; got {shape}. {alpha}".rstrip())
    if images.numel() == 0:
        raise ValueError(f"`{name}` must have at least one pixel; got {shape}. Skip the empty batch.")
    return images.permute(0, 3, 1, 2) if is_interleaved(images) else images


def check_inside(inside: object, images: Tensor) -> Tensor | None:
    """Bool or uint8 [B, H, W], true where a pixel belongs to the image; returned as contiguous uint8."""
    if inside is None:
        return None
    checks.tensor("inside", inside)
    assert isinstance(inside, Tensor)
    checks.dtype("inside", inside, (torch.bool, torch.uint8), "Compare it with the fill value.")
    wanted = [images.shape[0], *images.shape[2:]]
    if list(inside.shape) != wanted:
        raise ValueError(f"`inside` must be [B, H, W] = {wanted} like `images`; got {list(inside.shape)}.")
    if inside.device != images.device:
        raise ValueError(f"`inside` must be on {images.device} like `images`; got {inside.device}. Move it first.")
    return inside.contiguous().view(torch.uint8)


def check_method(method: object, convention: object) -> Convention:
    """The convention of this name, which must support the method."""
    checks.one_of("method", method, METHODS)
    checks.one_of("convention", convention, tuple(CONVENTIONS))
    chosen = CONVENTIONS[str(convention)]
    if method in LAB and chosen.lab is None:
        able = ", ".join(name for name, one in CONVENTIONS.items() if one.lab)
        raise ValueError(f"`convention` {convention!r} has no {method}, because cuCIM has none. Use one of {able}.")
    return chosen


def check_policy(min_tissue: object, fallback: object, allowed: tuple[str, ...] = ("reference", "pass")) -> None:
    if isinstance(min_tissue, bool) or not isinstance(min_tissue, int) or min_tissue < 2:
        raise ValueError(f"`min_tissue` must be a whole number of pixels, 2 or more; got {min_tissue!r}.")
    checks.one_of("fallback", fallback, allowed)


def check_dtype(dtype: torch.dtype | None, mean: object) -> torch.dtype:
    """The output's dtype: the given one, else uint8, or float32 with `mean` and `std`."""
    if dtype is None:
        return torch.uint8 if mean is None else torch.float32
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be {checks.names(DTYPES)}; got {dtype!r}.")
    if dtype == torch.uint8 and mean is not None:
        raise ValueError("`dtype` must be floating with `mean` and `std`; got uint8. Leave them out, or use float32.")
    return dtype


def check_statistics(mean: object, std: object) -> tuple[list[float] | None, list[float] | None]:
    """Mean and std as three numbers each, both or none."""
    if (mean is None) != (std is None):
        raise ValueError("`mean` and `std` must be given together; got only one of them.")
    if mean is None:
        return None, None
    found = []
    for name, value in (("mean", mean), ("std", std)):
        numbers = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
        if not isinstance(numbers, Sequence) or len(numbers) != 3:
            raise ValueError(f"`{name}` must be three numbers in 0..1, for R, G and B; got {value!r}.")
        found.append([checks.finite(name, number) for number in numbers])
    if min(found[0]) < 0 or max(found[0]) > 1:
        raise ValueError(f"`mean` must be for RGB in 0..1; got {mean!r}. Divide grey levels by 255, and `std` too.")
    if min(found[1]) <= 0 or max(found[1]) > 1:
        raise ValueError(f"`std` must be above 0, for RGB in 0..1; got {std!r}. Divide grey levels by 255.")
    if min(found[1]) < LEAST_STD:
        raise ValueError(f"`std` must be {LEAST_STD:g} or more, because float16 would overflow; got {std!r}.")
    return found[0], found[1]


def check_apart(name: str, vectors: Tensor) -> None:
    if not are_apart(vectors).all():
        raise ValueError(f"`{name}` must hold two different stains, finite numbers; got {vectors[0].tolist()}.")


def check_stains(
    stain_matrix: Tensor | None, max_concentration: Tensor | None, images: Tensor, method: str, convention: Convention
) -> tuple[Tensor | None, Tensor | None]:
    if stain_matrix is None:
        if max_concentration is not None:
            raise ValueError("`max_concentration` needs `stain_matrix`: it gives the amounts of those stains.")
        return None, None
    if method in LAB:
        raise ValueError(f"`stain_matrix` is not used by {method}. Leave it out.")
    vectors = _rows("stain_matrix", stain_matrix, (3, 2), images)
    if convention.unit:
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    seen = vectors.device.type == "cpu" and not torch.compiler.is_compiling()  # without waiting for a GPU
    if seen:
        check_apart("stain_matrix", vectors)
    if max_concentration is None:
        return vectors, None
    amounts = _rows("max_concentration", max_concentration, (2,), images)
    if seen and not ((amounts > 0) & amounts.isfinite()).all():
        raise ValueError(f"`max_concentration` must be finite and above 0; got {amounts.tolist()}.")
    return vectors, amounts


def _rows(name: str, value: Tensor, shape: tuple[int, ...], images: Tensor) -> Tensor:
    """Float64 [B, *shape] on the images' device."""
    batch = len(images)
    checks.tensor(name, value)
    if tuple(value.shape) not in (shape, (1, *shape), (batch, *shape)):
        raise ValueError(
            f"`{name}` must be {list(shape)} or {[batch, *shape]}, one per image; got {list(value.shape)}."
        )
    return value.to(images.device, torch.float64).expand(batch, *shape)


def check_slides(slides: Sequence[str] | None, images: Tensor) -> list[str]:
    """One key per image; None: "" for all."""
    if slides is None:
        return [""] * len(images)
    if isinstance(slides, str) or not isinstance(slides, Iterable) or not all(isinstance(key, str) for key in slides):
        raise TypeError(f"`slides` must be a list of {len(images)} keys, one per image; got {slides!r}.")
    if len(slides) != len(images):
        raise ValueError(f"`slides` must have {len(images)} keys, one per image; got {len(slides)}.")
    return list(slides)


def check_key(key: object) -> None:
    if not isinstance(key, str) or not key:
        raise ValueError(f'`key` must be the name of a slide, not ""; got {key!r}.')


def check_augmentation(augmentation: Sequence[float]) -> tuple[float, float]:
    """Sigma of alpha and of beta."""
    numbers = augmentation if isinstance(augmentation, Sequence) else ()
    if len(numbers) != 2 or not all(isinstance(sigma, int | float) and 0 <= sigma <= 1 for sigma in numbers):
        raise ValueError(f"`augmentation` must be two numbers in 0..1, for alpha and beta; got {augmentation!r}.")
    return float(numbers[0]), float(numbers[1])


def check_colour(colour: Tensor | None, images: Tensor) -> Tensor | None:
    return _check("colour", colour, (len(images), 3, 4))


def check_draws(draws: Tensor | None, images: Tensor) -> Tensor | None:
    """On the images' device."""
    draws = _check("draws", draws, (len(images), 4))
    if draws is None:
        return None
    if draws.device.type == "cpu" and not bool(((draws >= 0) & (draws <= 1)).all()):
        raise ValueError("`draws` must lie in 0..1; got values outside, or NaN. Draw them with torch.rand.")
    return draws.to(images.device, non_blocking=True)


def _check(name: str, value: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a Tensor; got {type(value).__name__}. Convert it: torch.from_numpy.")
    if tuple(value.shape) != shape or value.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"`{name}` must be float32 {list(shape)}; got {value.dtype} {list(value.shape)}.")
    return value
