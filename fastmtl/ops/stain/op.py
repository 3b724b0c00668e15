"""A whole normalisation as one `torch.library` op: what torch.compile sees are its inputs, outputs and their shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from ...reference.stain_conventions import CONVENTIONS
from .backends import passes_of
from .fit import Estimate, Stains, are_apart
from .input import output_strides, readable
from .recipes import Finish
from .run import LAB, Normalised, Run

_TAGS = (torch.Tag.pt2_compliant_tag,)
_LIBRARY = torch.library.Library("fastmtl", "FRAGMENT")
_LIBRARY.define(
    "stain_normalize(Tensor images, Tensor? inside, Tensor? vectors, Tensor? maxima, Tensor target_first, "
    "Tensor target_second, str method, str convention, ScalarType dtype, float[]? mean, float[]? std, "
    "bool return_stains, int min_tissue, str fallback, str backend) -> Tensor[]",
    tags=_TAGS,
)


def normalise(
    images: Tensor,
    inside: Tensor | None,
    given: tuple[Tensor | None, Tensor | None],
    target: Stains | tuple[Tensor, Tensor],
    run: tuple[str, str, torch.dtype, tuple[float, ...] | None, tuple[float, ...] | None, bool, int, str, str],
) -> Normalised:
    """The op's list as a `Normalised`; with `return_stains` False all but the images is None or empty.

    Args:
        images: uint8 [B, 3, H, W]; inside: uint8 [B, H, W] or None.
        given: stain vectors float64 [B, 3, 2] and 99th percentiles [B, 2], either None where it is to be measured.
        target: as `Run`'s.
        run: the schema's other arguments, in its order.
    """
    parts = torch.ops.fastmtl.stain_normalize(images, inside, *given, *target, *run)
    if len(parts) == 1:
        return Normalised(parts[0], None, None, None, None, images.new_empty(0, dtype=torch.bool))
    if len(parts) == 2:
        return Normalised(parts[0], None, None, None, None, parts[1])
    made, fell_back, matrix, maxima, hematoxylin, eosin = parts
    return Normalised(made, hematoxylin, eosin, matrix, maxima, fell_back)


def _run(
    images: Tensor,
    inside: Tensor | None,
    vectors: Tensor | None,
    maxima: Tensor | None,
    target_first: Tensor,
    target_second: Tensor,
    method: str,
    convention: str,
    dtype: torch.dtype,
    mean: list[float] | None,
    std: list[float] | None,
    return_stains: bool,
    min_tissue: int,
    fallback: str,
    backend: str,
) -> list[Tensor]:
    target = (target_first, target_second) if method in LAB else Stains(target_first, target_second)
    run = Run(method, CONVENTIONS[convention], target, min_tissue, fallback, dtype)
    passes, pixels, given = passes_of(images, backend), readable(images, inside), None
    if vectors is not None and maxima is None:
        given = run.measure(passes, pixels, vectors)
    elif vectors is not None and maxima is not None:
        amounts = ((maxima > 0) & maxima.isfinite()).all(1)
        given = Estimate(Stains(vectors, maxima), amounts & are_apart(vectors))
    separate = return_stains and method not in LAB
    made = run(passes, pixels, given, Finish(mean, std), separate=separate)
    if not return_stains:
        return [made.images]
    parts = (made.images, made.fell_back, made.stain_matrix, made.max_concentration, made.hematoxylin, made.eosin)
    return [part for part in parts if part is not None]


def _fake(
    images: Tensor,
    inside: Tensor | None,
    vectors: Tensor | None,
    maxima: Tensor | None,
    target_first: Tensor,
    target_second: Tensor,
    method: str,
    convention: str,
    dtype: torch.dtype,
    mean: list[float] | None,
    std: list[float] | None,
    return_stains: bool,
    *_: object,
) -> list[Tensor]:
    strides = output_strides(readable(images, None).images)

    def picture() -> Tensor:
        return torch.empty_strided(images.shape, strides, dtype=dtype, device=images.device)

    if not return_stains:
        return [picture()]
    batch = images.shape[0]
    first = [picture(), images.new_empty(batch, dtype=torch.bool)]
    if method in LAB:
        return first
    stains = [images.new_empty(shape, dtype=torch.float64) for shape in ((batch, 3, 2), (batch, 2))]
    return [*first, *stains, picture(), picture()]


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("stain_normalize", _run, _device)
torch.library.register_fake("fastmtl::stain_normalize", _fake, lib=_LIBRARY)
