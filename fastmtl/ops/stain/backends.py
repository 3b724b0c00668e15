"""Which passes a tensor gets: C++ on the CPU, CuPy and Triton on NVIDIA GPUs, or the exact definition."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ...reference import stain_normalize as exact
from ...reference.stain_conventions import Convention
from ...reference.stain_vectors import tissue
from ..core import backends
from .fit import LEAST_SPREAD, Estimate, Stains, are_two
from .input import Pixels
from .primitives import CppPasses, Passes


def passes_of(images: Tensor, backend: str) -> Passes | None:
    """None for the exact definition.

    Raises:
        BackendError: the backend asked for cannot run here.
    """
    return backends.choose("stain_normalize", backend, images)()


@cache
def _on_gpu() -> Passes:
    from .gpu import GpuPasses

    return GpuPasses()


def exact_estimate(pixels: Pixels, method: str, convention: Convention, min_tissue: int, pooled: bool) -> Estimate:
    """As `_stain_fit.estimate`, pixel by pixel in float64."""
    groups = [pixels.planes().transpose(0, 1).flatten(1)] if pooled else list(pixels.planes())
    kept = pixels.kept()
    insides = [None] * len(groups) if kept is None else [kept.flatten()] if pooled else list(kept)
    found = [_exact(*pair, method, convention, min_tissue) for pair in zip(groups, insides, strict=True)]
    vectors, maxima, valid = (torch.stack(part).to(pixels.images.device) for part in zip(*found, strict=True))
    return Estimate(Stains(vectors, maxima), valid)


def _exact(
    rgb: Tensor, inside: Tensor | None, method: str, convention: Convention, min_tissue: int
) -> tuple[Tensor, Tensor, Tensor]:
    rgb = (rgb if inside is None else rgb[:, inside]).cpu()
    nothing = torch.eye(3, 2, dtype=torch.float64), torch.ones(2, dtype=torch.float64), torch.tensor(False)
    if rgb.shape[1] == 0:
        return nothing
    density = convention.densities()[rgb[:, tissue(rgb, convention)].long()]
    if density.shape[1] < min_tissue:
        return nothing
    if method != "ruifrok" and density.var(1, correction=0).sum() <= LEAST_SPREAD:
        return nothing
    vectors, maxima = exact.estimate(rgb, method, convention)
    two = are_two(Stains(vectors[None], maxima[None]))[0]
    return (vectors, maxima, two) if two else nothing


_BYTES = (torch.uint8,)
backends.register(
    "stain_normalize",
    {
        "cpp": backends.Implementation(cache(CppPasses), "cpu", _BYTES),
        "triton": backends.Implementation(_on_gpu, "cuda", _BYTES),
        "reference": backends.Implementation(lambda: None, "any", _BYTES),
    },
)
