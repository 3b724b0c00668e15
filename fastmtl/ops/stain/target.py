"""The target of a normalisation: numbers, an image, or a default."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...reference.stain_conventions import HEMATOXYLIN_EOSIN, MAX_CONCENTRATION, RUIFROK, Convention
from . import lab
from .arguments import LAB, TargetLike, as_tensor, check_apart, check_images
from .backends import passes_of
from .fit import Stains
from .pixels import readable
from .run import Run


def resolve_target(
    target: TargetLike, method: str, convention: Convention, backend: str = "auto"
) -> Stains | tuple[Tensor, Tensor]:
    """The numbers of the target: given, estimated from an image, or the default."""
    if target is None:
        if method in LAB:
            raise ValueError(
                f"`target` must be given for {method}: an image [3, H, W], or (means [3], standard deviations [3])."
            )
        return default_target(convention)
    given = as_tensor(target, "target")
    if isinstance(given, Tensor):
        if given.dim() != 3:
            raise ValueError(
                f"`target` must be one image [3, H, W] or [H, W, 3]; got {list(given.shape)}. Of several, "
                "data.mosaic_target makes one."
            )
        pixels = readable(check_images(given[None], "target"), None)
        passes = passes_of(pixels.images, backend)
        if method in LAB:
            return lab.statistics(pixels, convention, passes is not None and pixels.images.device.type == "cpu")
        run = Run(method, convention, default_target(convention), 2, "pass", torch.uint8)
        found = run.fit(passes, pixels)
        if not bool(found.valid):
            raise ValueError(
                "`target` has no two stains to estimate: it is blank or has one colour. Choose another image."
            )
        return found.stains
    if not isinstance(given, Sequence) or len(given) != 2:
        raise TypeError(
            f"`target` must be an image (tensor, array or PIL image) or a pair of tensors; got {type(given).__name__}."
        )
    shapes = ((3,), (3,)) if method in LAB else ((3, 2), (2,))
    parts = []
    for value, shape in zip(given, shapes, strict=True):
        try:
            part = torch.as_tensor(value, dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`target` must hold numbers {list(shape)} for {method}; {error}.") from None
        if tuple(part.shape) not in (shape, (1, *shape)):
            raise ValueError(f"`target` must hold {list(shape)} for {method}; got {list(part.shape)}.")
        parts.append(part.reshape(1, *shape))
    if not torch.compiler.is_compiling() and parts[0].device.type == parts[1].device.type == "cpu":
        _check_numbers(parts[0], parts[1], method)
    return (parts[0], parts[1]) if method in LAB else Stains(*parts)


def _check_numbers(first: Tensor, second: Tensor, method: str) -> None:
    """Refuse numbers that would give a black or empty image."""
    name = "standard deviations" if method in LAB else "99th percentiles"
    if not (first.isfinite().all() and second.isfinite().all() and (second > 0).all()):
        raise ValueError(
            f"`target` must hold finite numbers, and {name} above 0; got {first[0].tolist()} and {second[0].tolist()}."
        )
    if method not in LAB:
        check_apart("target", first)


def default_target(convention: Convention) -> Stains:
    """Macenko's reference stains; for HistomicsTK its default, Ruifrok's vectors."""
    vectors = RUIFROK if convention.solver == "complement" else HEMATOXYLIN_EOSIN
    return Stains(
        torch.tensor(vectors, dtype=torch.float64)[None], torch.tensor(MAX_CONCENTRATION, dtype=torch.float64)[None]
    )
