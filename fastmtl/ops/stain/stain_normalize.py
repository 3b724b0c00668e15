"""Stain normalisation of uint8 batches: few passes over each tile, the last of which writes the network's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from ...reference.stain_conventions import CONVENTIONS, Convention
from ..core import backends, checks
from . import lab as lab
from .backends import passes_of
from .fit import Stains, are_apart, mask_of
from .input import METHODS, as_tensor, check_images, check_inside, is_interleaved, readable
from .op import normalise
from .primitives import TorchPasses
from .run import LAB, Normalised, Run, default_target

DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
MIN_TISSUE = 256
LEAST_STD = 1e-4


@overload
def stain_normalize(
    images: Tensor,
    method: str = "macenko",
    *,
    convention: str = "torchstain",
    stain_matrix: Tensor | None = None,
    max_concentration: Tensor | None = None,
    target: Any = None,
    dtype: torch.dtype | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    return_stains: Literal[False] = False,
    inside: Tensor | None = None,
    min_tissue: int = MIN_TISSUE,
    fallback: str = "reference",
    backend: str = "auto",
) -> Tensor: ...


@overload
def stain_normalize(
    images: Tensor, method: str = "macenko", *, return_stains: Literal[True], **options: Any
) -> Normalised: ...


@torch.no_grad()
def stain_normalize(  # pyright: ignore[reportInconsistentOverload]  # the options a third time would say no more
    images: Tensor,
    method: str = "macenko",
    *,
    convention: str = "torchstain",
    stain_matrix: Tensor | None = None,
    max_concentration: Tensor | None = None,
    target: Any = None,
    dtype: torch.dtype | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    return_stains: bool = False,
    inside: Tensor | None = None,
    min_tissue: int = MIN_TISSUE,
    fallback: str = "reference",
    backend: str = "auto",
) -> Tensor | Normalised:
    """Give every image the target's stains; each is estimated from its own pixels, or all from one known matrix.

    With optical densities od = -ln(I / Io), stain vectors S [3, 2] and concentrations c of an image, T the target's:
        c = argmin |od - S c|^2 (non-negative where the convention says so)
        out = Io exp(-T (c * target_max / max)),   max = 99th percentile of c over the image
    Macenko: S are the 1st and 99th percentile of the angles of tissue in the plane of the two leading eigenvectors.
    Vahadane: S is the non-negative sparse dictionary of two atoms (penalty 0.1), deterministic. Ruifrok: S is fixed.
    Reinhard: means and standard deviations of LAB become the target's; modified: L is stretched, a and b are shifted.

    Args:
        images: uint8 RGB [B, 3, H, W] or [B, H, W, 3] in any memory order; where both dims are 3 the first counts.
        method: "macenko", "vahadane", "ruifrok", "reinhard" or "modified_reinhard".
        convention: whose optical density, tissue mask, solver, percentiles and rounding: "torchstain", "staintools",
            "tiatoolbox", "cucim", "histomicstk". The table stands in docs/stain.md.
        stain_matrix: [3, 2] or [B, 3, 2], columns hematoxylin and eosin, rows R, G, B: used instead of an estimate.
        max_concentration: [2] or [B, 2], above 0, with `stain_matrix`; without it measured on each image.
        target: what the images shall look like. None: Macenko's reference stains. A pair (stain matrix [3, 2], 99th
            percentiles [2]); for Reinhard's methods (means [3], standard deviations [3]) of LAB. Or an image, uint8
            [3, H, W] or [H, W, 3], a NumPy array or a PIL image, that these are estimated from: each call anew, so that
            a loop takes its numbers (`data.StainNormalizer`). Under torch.compile numbers.
        dtype: uint8, float16, bfloat16 or float32. Default: uint8, or float32 with `mean` and `std`.
        mean, std: of RGB in 0..1, each in 0..1, std 1e-4 or more: out = (out / 255 - mean) / std in the same pass.
            Without them, grey levels 0..255.
        return_stains: also return stain images, matrices and what fell back.
        inside: bool or uint8 [B, H, W]; what is False there takes part in no estimate and becomes grey level 240.
        min_tissue: pixels of tissue that an estimate needs; 2 or more.
        fallback: what an image with less, or without two stains, does. "reference": it is unmixed with the target's own
            stains, and so hardly changes; "pass": it stays as it is. Never raises, never gives NaN.
        backend: "auto", "cpp" (CPU), "triton" (NVIDIA; histograms by CuPy where installed) or "reference" (estimates
            exact per pixel in float64; else they are exact to a bin of the histograms).

    Returns:
        The images in the layout they came in; with `return_stains` a `Normalised`. Deterministic, whatever the number
        of threads. Nothing here waits for a GPU, but for "vahadane" and "tiatoolbox".

    Raises:
        ValueError: a shape, dtype, device, name or range that does not fit.
        TypeError: something that should be a tensor is not one.
        BackendError: the backend asked for cannot run here.

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
    statistics = check_statistics(mean, std)
    dtype = check_dtype(dtype, mean)
    given = _given(stain_matrix, max_concentration, planes, method, chosen)
    goal, within = resolve_target(target, method, chosen, backend), check_inside(inside, planes)
    run = (method, convention, dtype, *statistics, return_stains, min_tissue, fallback, backend)
    result = normalise(planes, within, given, goal, run)
    result = result.interleaved() if is_interleaved(images) else result
    return result if return_stains else result.images


def check_method(method: object, convention: object) -> Convention:
    """The convention by its name, able to do the method."""
    checks.one_of("method", method, METHODS)
    checks.one_of("convention", convention, tuple(CONVENTIONS))
    chosen = CONVENTIONS[str(convention)]
    if method in LAB and chosen.lab is None:
        able = ", ".join(name for name, one in CONVENTIONS.items() if one.lab)
        raise ValueError(f"`convention` {convention!r} has no {method}: cuCIM has none. Take one of {able}.")
    return chosen


def check_policy(min_tissue: object, fallback: object, allowed: tuple[str, ...] = ("reference", "pass")) -> None:
    if isinstance(min_tissue, bool) or not isinstance(min_tissue, int) or min_tissue < 2:
        raise ValueError(f"`min_tissue` must be a whole number of pixels, 2 or more; got {min_tissue!r}.")
    checks.one_of("fallback", fallback, allowed)


def check_dtype(dtype: torch.dtype | None, mean: object) -> torch.dtype:
    """The output's: as asked for, or uint8 without and float32 with statistics."""
    if dtype is None:
        return torch.uint8 if mean is None else torch.float32
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be {checks.names(DTYPES)}; got {dtype!r}.")
    if dtype == torch.uint8 and mean is not None:
        raise ValueError("`dtype` must be floating with `mean` and `std`; got uint8. Leave them out, or take float32.")
    return dtype


def check_statistics(mean: object, std: object) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and std as three numbers each, both or none."""
    if (mean is None) != (std is None):
        raise ValueError("`mean` and `std` go together; got one without the other.")
    if mean is None:
        return None, None
    found = []
    for name, value in (("mean", mean), ("std", std)):
        numbers = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
        if not isinstance(numbers, Sequence) or len(numbers) != 3:
            raise ValueError(f"`{name}` must be three numbers, of R, G and B in 0..1; got {value!r}.")
        found.append(tuple(checks.finite(name, number) for number in numbers))
    if min(found[0]) < 0 or max(found[0]) > 1:
        raise ValueError(f"`mean` must be of RGB in 0..1; got {mean!r}. Divide grey levels by 255, and `std` too.")
    if min(found[1]) <= 0 or max(found[1]) > 1:
        raise ValueError(f"`std` must be of RGB in 0..1, above 0; got {std!r}. Divide grey levels by 255.")
    if min(found[1]) < LEAST_STD:
        raise ValueError(f"`std` must be {LEAST_STD:g} or more, or float16 overflows; got {std!r}.")
    return found[0], found[1]


def resolve_target(
    target: Any, method: str, convention: Convention, backend: str = "auto"
) -> Stains | tuple[Tensor, Tensor]:
    """The target's numbers: given, estimated from an image, or the default."""
    if target is None:
        if method in LAB:
            raise ValueError(
                f"`target` must be given for {method}: an image [3, H, W], or (means [3], standard deviations [3])."
            )
        return default_target(convention)
    target = as_tensor(target, "target")
    if isinstance(target, Tensor):
        if target.dim() != 3:
            raise ValueError(
                f"`target` must be one image [3, H, W] or [H, W, 3]; got {list(target.shape)}. Of several, "
                "data.mosaic_target makes one."
            )
        pixels = readable(check_images(target[None], "target"), None)
        passes = passes_of(pixels.images, backend)
        if method in LAB:
            return lab.statistics(pixels, convention, passes is not None and pixels.images.device.type == "cpu")
        run = Run(method, convention, default_target(convention), 2, "pass", torch.uint8)
        found = run.fit(passes, pixels)
        if not bool(found.valid):
            raise ValueError("`target` has no two stains to estimate: it is blank or of one colour. Choose another.")
        return found.stains
    if not isinstance(target, Sequence) or len(target) != 2:
        raise TypeError(
            f"`target` must be an image (tensor, array or PIL image) or a pair of tensors; got {type(target).__name__}."
        )
    shapes = ((3,), (3,)) if method in LAB else ((3, 2), (2,))
    parts = []
    for value, shape in zip(target, shapes, strict=True):
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
    """Refuse what would give a black or empty picture."""
    name = "standard deviations" if method in LAB else "99th percentiles"
    if not (first.isfinite().all() and second.isfinite().all() and (second > 0).all()):
        raise ValueError(
            f"`target` must hold finite numbers, and {name} above 0; got {first[0].tolist()} and {second[0].tolist()}."
        )
    if method not in LAB:
        _check_apart("target", first)


def _check_apart(name: str, vectors: Tensor) -> None:
    if not are_apart(vectors).all():
        raise ValueError(f"`{name}` must hold two different stains, finite numbers; got {vectors[0].tolist()}.")


def _given(
    stain_matrix: Tensor | None, max_concentration: Tensor | None, images: Tensor, method: str, convention: Convention
) -> tuple[Tensor | None, Tensor | None]:
    if stain_matrix is None:
        if max_concentration is not None:
            raise ValueError("`max_concentration` needs `stain_matrix`: it says how much of which stains.")
        return None, None
    if method in LAB:
        raise ValueError(f"`stain_matrix` has no meaning for {method}. Leave it out.")
    vectors = _rows("stain_matrix", stain_matrix, (3, 2), images)
    if convention.unit:
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    seen = vectors.device.type == "cpu" and not torch.compiler.is_compiling()  # a GPU is not waited for
    if seen:
        _check_apart("stain_matrix", vectors)
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
            f"`{name}` must be {list(shape)} or {[batch, *shape]}, one for each image; got {list(value.shape)}."
        )
    return value.to(images.device, torch.float64).expand(batch, *shape)


def stain_colours(images: Tensor, inside: Tensor | None, convention: str) -> Tensor:
    """Int64 [N, 9]: the table of colours that `data.StainStatistics` adds up; images [B, 3, H, W] as checked."""
    pixels = readable(images, inside)
    passes = passes_of(images, "auto") or TorchPasses()
    if CONVENTIONS[convention].tissue != "stretched":
        return passes.colours(pixels, mask_of(pixels, CONVENTIONS[convention]))
    # A contrast stretch belongs to one image: so does its mask.
    return torch.cat([passes.colours(one, mask_of(one, CONVENTIONS[convention])) for one in pixels.each()])
