"""Stain normalisation of uint8 batches: a few passes over each tile; the last one writes the network's input.

It is one `torch.library` op: torch.compile sees only its inputs, its outputs and their shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, ParamSpec, Protocol, cast, overload

import torch
from torch import Tensor

from ...reference.stain_conventions import CONVENTIONS
from ..core import backends, checks
from ..core.fields import schema
from .arguments import (
    LAB,
    MIN_TISSUE,
    TargetLike,
    check_dtype,
    check_images,
    check_inside,
    check_method,
    check_policy,
    check_stains,
    check_statistics,
    is_interleaved,
)
from .backends import passes_of
from .coefficients import Output
from .fit import Estimate, Stains, are_apart
from .pixels import output_strides, readable
from .run import Normalised, Run
from .target import resolve_target

P = ParamSpec("P")
_TAGS = (torch.Tag.pt2_compliant_tag,)
_LIBRARY = torch.library.Library("fastmtl", "FRAGMENT")


class Call(NamedTuple):
    """The op's arguments, in the order of its schema."""

    images: Tensor  # uint8 [B, 3, H, W]
    inside: Tensor | None  # uint8 [B, H, W]
    vectors: Tensor | None  # float64 [B, 3, 2]; None: measured
    maxima: Tensor | None  # float64 [B, 2], 99th percentiles; None: measured
    target_first: Tensor  # as in `Run`
    target_second: Tensor
    method: str
    convention: str
    dtype: torch.dtype
    mean: list[float] | None
    std: list[float] | None
    return_stains: bool
    min_tissue: int
    fallback: str
    backend: str


_LIBRARY.define(f"stain_normalize({schema(Call)}) -> Tensor[]", tags=_TAGS)


class _WithStains(Protocol[P]):
    """`stain_normalize` as type checkers see it: images, or with `return_stains=True` a `Normalised`."""

    @overload
    def __call__(
        self, images: Tensor, method: str = "macenko", *, return_stains: Literal[True], **options: Any
    ) -> Normalised: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor: ...


def _with_stains(function: Callable[P, Tensor | Normalised]) -> _WithStains[P]:
    return cast("_WithStains[P]", function)


@_with_stains
@torch.no_grad()
def stain_normalize(
    images: Tensor,
    method: str = "macenko",
    *,
    convention: str = "torchstain",
    stain_matrix: Tensor | None = None,
    max_concentration: Tensor | None = None,
    target: TargetLike = None,
    dtype: torch.dtype | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    return_stains: bool = False,
    inside: Tensor | None = None,
    min_tissue: int = MIN_TISSUE,
    fallback: str = "reference",
    backend: str = "auto",
) -> Tensor | Normalised:
    """Give every image the target's stains; the stains of an image are estimated from its pixels, or given.

    With optical densities od = -ln(I / Io), stain vectors S [3, 2] and concentrations c of an image, T the target's:
        c = argmin |od - S c|^2 (non-negative if the convention requires it)
        out = Io exp(-T (c * target_max / max)),   max = 99th percentile of c over the image
    Macenko: S are the 1st and 99th percentile of the angles of tissue in the plane of the two leading eigenvectors.
    Vahadane: S is the non-negative sparse dictionary of two atoms (penalty 0.1), deterministic. Ruifrok: S is fixed.
    Reinhard: means and standard deviations of LAB become the target's; modified: L is stretched, a and b are shifted.

    Args:
        images: uint8 RGB [B, 3, H, W] or [B, H, W, 3] in any memory order; if both dims are 3, dim 1 is the colour.
        method: "macenko", "vahadane", "ruifrok", "reinhard" or "modified_reinhard".
        convention: the library whose optical density, tissue mask, solver, percentiles and rounding to use:
            "torchstain", "staintools", "tiatoolbox", "cucim", "histomicstk". docs/stain.md compares them.
        stain_matrix: [3, 2] or [B, 3, 2], columns hematoxylin and eosin, rows R, G, B; replaces the estimate.
        max_concentration: [2] or [B, 2], above 0, only with `stain_matrix`; None: measured on each image.
        target: the look to give the images. None: Macenko's reference stains. A pair (stain matrix [3, 2], 99th
            percentiles [2]); for Reinhard's methods (means [3], standard deviations [3]) of LAB. Or an image to
            estimate these from: uint8 [3, H, W] or [H, W, 3], a NumPy array or a PIL image. Every call estimates again,
            so pass numbers in a loop (`data.StainNormalizer`) and under torch.compile.
        dtype: uint8, float16, bfloat16 or float32. Default: uint8, or float32 with `mean` and `std`.
        mean, std: of RGB in 0..1, each in 0..1, std 1e-4 or more: out = (out / 255 - mean) / std in the same pass.
            Without them, grey levels 0..255.
        return_stains: also return stain images, matrices and which images fell back.
        inside: bool or uint8 [B, H, W]; pixels where it is False are left out of every estimate and become grey level
            240.
        min_tissue: least number of tissue pixels for an estimate; 2 or more.
        fallback: what happens to an image with less tissue, or without two stains. "reference": it is unmixed with the
            target's stains, and so hardly changes; "pass": it is returned unchanged. Such images never raise and never
            become NaN.
        backend: "auto", "cpp" (CPU), "triton" (NVIDIA; histograms by CuPy where installed) or "reference" (estimates
            exact per pixel in float64; the other backends are exact to a histogram bin).

    Returns:
        The images in their input layout; with `return_stains` a `Normalised`. Deterministic for any number of threads.
        Only "vahadane" waits for a GPU.

    Raises:
        ValueError: an invalid shape, dtype, device, name or range.
        TypeError: an argument that must be a tensor is not one.
        BackendError: the requested backend cannot run here.

    Sources: Macenko et al. 2009; Vahadane et al. 2016; Ruifrok and Johnston 2001; Reinhard et al. 2001; modified: Roy
    et al. 2021.

    >>> tile = torch.randint(60, 200, (1, 3, 64, 64), dtype=torch.uint8)
    >>> stain_normalize(tile, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)).dtype
    torch.float32
    """
    planes = check_images(images)
    chosen = check_method(method, convention)
    backends.check_backend(backend)
    check_policy(min_tissue, fallback)
    checks.flag("return_stains", return_stains)
    mean, std = check_statistics(mean, std)
    dtype = check_dtype(dtype, mean)
    given = check_stains(stain_matrix, max_concentration, planes, method, chosen)
    goal, within = resolve_target(target, method, chosen, backend), check_inside(inside, planes)
    call = Call(planes, within, *given, *goal, method, convention, dtype, mean, std, return_stains, min_tissue,
                fallback, backend)  # fmt: skip
    result = _normalised(call, torch.ops.fastmtl.stain_normalize(*call))
    result = result.interleaved() if is_interleaved(images) else result
    return result if return_stains else result.images


def _normalised(call: Call, parts: list[Tensor]) -> Normalised:
    """The op's list as a `Normalised`; without `return_stains` every field except the images is None or empty."""
    if len(parts) == 1:
        return Normalised(parts[0], None, None, None, None, call.images.new_empty(0, dtype=torch.bool))
    if len(parts) == 2:
        return Normalised(parts[0], None, None, None, None, parts[1])
    made, fell_back, matrix, maxima, hematoxylin, eosin = parts
    return Normalised(made, hematoxylin, eosin, matrix, maxima, fell_back)


def _run(*arguments: Any) -> list[Tensor]:
    call = Call(*arguments)
    images, vectors, maxima, target = call.images, call.vectors, call.maxima, arguments[4:6]
    of_stains = call.method not in LAB
    run = Run(call.method, CONVENTIONS[call.convention], Stains(*target) if of_stains else target, call.min_tissue,
              call.fallback, call.dtype)  # fmt: skip
    passes, pixels, given = passes_of(images, call.backend), readable(images, call.inside), None
    if vectors is not None and maxima is None:
        given = run.measure(passes, pixels, vectors)
    elif vectors is not None and maxima is not None:
        amounts = ((maxima > 0) & maxima.isfinite()).all(1)
        given = Estimate(Stains(vectors, maxima), amounts & are_apart(vectors))
    made = run(passes, pixels, given, Output(call.mean, call.std), separate=call.return_stains and of_stains)
    if not call.return_stains:
        return [made.images]
    parts = (made.images, made.fell_back, made.stain_matrix, made.max_concentration, made.hematoxylin, made.eosin)
    return [part for part in parts if part is not None]


def _fake(*arguments: Any) -> list[Tensor]:
    call = Call(*arguments)
    images, batch = call.images, call.images.shape[0]
    strides = output_strides(readable(images, None).images)

    def picture() -> Tensor:
        return torch.empty_strided(images.shape, strides, dtype=call.dtype, device=images.device)

    if not call.return_stains:
        return [picture()]
    first = [picture(), images.new_empty(batch, dtype=torch.bool)]
    if call.method in LAB:
        return first
    stains = [images.new_empty(shape, dtype=torch.float64) for shape in ((batch, 3, 2), (batch, 2))]
    return [*first, *stains, picture(), picture()]


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("stain_normalize", _run, _device)
torch.library.register_fake("fastmtl::stain_normalize", _fake, lib=_LIBRARY)
