"""Estimate stains from the sums and histograms of the passes (for a whole batch, on its device) or from a table of
colours."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...reference.stain_conventions import ANGLES, LUMINANCE, RUIFROK, Convention
from ...reference.stain_normalize import concentrations
from ...reference.stain_vectors import linear, luminance_limit, ordered, stretched
from ..core.constants import on_device, to_device
from .dictionary import dictionary, mean_densities, tissue_densities, vahadane
from .passes import ANGLE_BINS, CONCENTRATION_BINS, Mask, Passes
from .pixels import Pixels
from .small_problems import are_apart as _are_apart

LEAST_SINE_SQUARE = 1e-3  # two vectors less than 1.8 degrees apart are one stain
LEAST_CONCENTRATION = 1e-2
LEAST_SPREAD = 1e-3  # variance of the density, summed over its channels: below this the tissue has one colour
_LIMITS = (LEAST_SPREAD, LEAST_CONCENTRATION, LEAST_SINE_SQUARE)


class Stains(NamedTuple):
    """Stains of each image: `vectors` float64 [B, 3, 2] (columns hematoxylin, eosin; rows R, G, B) and the 99th
    percentiles of their concentrations, `maxima` float64 [B, 2]."""

    vectors: Tensor
    maxima: Tensor


class Estimate(NamedTuple):
    """`stains` with `valid` bool [B]: whether there was enough tissue with two stains; if not, the stains are finite
    but meaningless."""

    stains: Stains
    valid: Tensor


@cache
def table(convention: Convention, device: torch.device) -> Tensor:
    """Densities of the grey levels, float32 [256]."""
    return convention.densities().float().to(device)


def mask_of(pixels: Pixels, convention: Convention) -> Mask:
    """The convention's tissue mask as an argument of the passes."""
    if convention.tissue in ("all", "any"):
        return Mask(1 if convention.tissue == "all" else 2, limit=_limit(convention))
    if convention.tissue == "length":
        return Mask(0)
    device = pixels.images.device
    if convention.tissue == "stretched":
        flat, kept = pixels.planes().flatten(1).long(), pixels.kept()
        amounts = torch.ones_like(flat) if kept is None else kept[:, None].expand(-1, 3, -1).flatten(1).long()
        counts = torch.zeros(pixels.batch, 256, dtype=torch.int64, device=device).scatter_add_(1, flat, amounts)
        tables = _luminance(stretched(counts)).contiguous()
    else:
        tables = _luminance_table(device).expand(pixels.batch, 3, 256).contiguous()
    return Mask(3, tables=tables, threshold=luminance_limit(convention.threshold))


@cache
def _limit(convention: Convention) -> int:
    """The lightest grey level that counts as tissue."""
    densities = convention.densities()
    dense = densities >= convention.threshold if convention.tissue == "all" else densities > convention.threshold
    return int(dense.sum()) - 1


def _luminance(levels: Tensor) -> Tensor:
    """Each channel's part of the luminance, float32 [B, 3, 256], by grey level; levels float64 [B, 256]."""
    return (linear(levels)[:, None] * to_device(LUMINANCE, levels.device)[:, None]).float()


@cache
def _luminance_table(device: torch.device) -> Tensor:
    return _luminance(torch.arange(256, dtype=torch.float64)[None]).to(device)


def _ruifrok() -> Tensor:
    """Ruifrok's stains as unit vectors, float64 [3, 2] on the host."""
    vectors = torch.tensor(RUIFROK, dtype=torch.float64)
    return vectors / vectors.norm(dim=0)


def maxima(passes: Passes, pixels: Pixels, vectors: Tensor, convention: Convention, pooled: bool = False) -> Tensor:
    """The 99th percentiles of the concentrations, float64 [B, 2], or [1, 2] of all images together."""
    densities = table(convention, vectors.device)
    every = vectors.expand(pixels.batch, 3, 2)
    matrix, lasso, reach, scale = passes.small.solver(every, densities, convention, CONCENTRATION_BINS)
    counts = passes.concentrations(pixels, densities, matrix, lasso, scale)
    if pooled:
        counts, reach = counts.sum(0, keepdim=True, dtype=torch.int64), reach[:1]
    ranks = to_device((0.99,), counts.device)
    return passes.small.quantiles(counts, ranks, convention.nearest, reach)[..., 0]


def estimate(
    passes: Passes,
    pixels: Pixels,
    method: str,
    convention: Convention,
    *,
    min_tissue: int,
    pooled: bool = False,
) -> Estimate:
    """Stains of every image, or with `pooled` of all images together ([1, ...])."""
    mask, densities = mask_of(pixels, convention), table(convention, pixels.images.device)
    moments = passes.moments(pixels, densities, mask)
    moments = moments.sum(0, keepdim=True) if pooled else moments
    enough = moments[:, 0] >= min_tissue
    if method == "ruifrok":
        vectors = on_device(_ruifrok(), moments.device).expand(len(moments), 3, 2)
    elif method == "macenko":
        basis = passes.small.principal_plane(moments, convention.centred)
        least = convention.threshold**2 if convention.tissue == "length" else -math.inf
        float_basis = basis.expand(pixels.batch, 2, 3).float().contiguous()
        counts = passes.angles(pixels, densities, mask, float_basis, least)
        counts = counts.sum(0, keepdim=True, dtype=torch.int64) if pooled else counts
        enough = counts.sum(1) >= min_tissue
        places = passes.small.quantiles(counts, to_device(ANGLES, counts.device), convention.nearest)
        vectors = passes.small.directions(places, basis, convention, ANGLE_BINS)
    else:
        vectors = ordered(vahadane(passes, pixels, mask, convention, pooled), convention)
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    found = Stains(vectors, maxima(passes, pixels, vectors, convention, pooled))
    spread = None if method == "ruifrok" else moments
    return Estimate(found, enough & passes.small.valid(spread, *found, _LIMITS))


def are_two(stains: Stains) -> Tensor:
    """Bool [B]: whether the vectors are finite and of two stains, and the image contains both."""
    return are_apart(stains.vectors) & (stains.maxima > LEAST_CONCENTRATION).all(1)


def are_apart(vectors: Tensor) -> Tensor:
    """Bool [B]: whether vectors [B, 3, 2] of any length are finite and of two directions."""
    return _are_apart(vectors, LEAST_SINE_SQUARE)


def from_colours(colours: Tensor, method: str, convention: Convention, min_tissue: int) -> Estimate:
    """Stains of pooled colours (`Passes.colours`), as `estimate` does; one, [1, ...]."""
    density, weight = tissue_densities(colours, convention)
    number = weight.sum()
    if method == "ruifrok":
        vectors = _ruifrok()
    elif method == "macenko":
        vectors, number = _macenko_of_colours(density, weight, convention)
    else:
        vectors = ordered(dictionary(density, weight), convention)
        vectors = torch.nn.functional.normalize(vectors, dim=0)
    everything = mean_densities(colours[:, 0], colours[:, 1:5], convention)
    c = concentrations(everything.T, vectors, convention)[:2]
    maxima = torch.stack([_weighted_quantile(row, colours[:, 1], 0.99) for row in c])
    about = density - (density * weight[:, None]).sum(0) / weight.sum().clamp(min=1)
    variance = (about.square().sum(1) * weight).sum() / weight.sum().clamp(min=1)
    found = Stains(vectors[None], maxima[None])
    valid = (number >= min_tissue) & are_two(found)
    if method != "ruifrok":
        valid = valid & (variance > LEAST_SPREAD)
    return Estimate(found, valid)


def _macenko_of_colours(density: Tensor, weight: Tensor, convention: Convention) -> tuple[Tensor, Tensor]:
    """Vectors [3, 2], and the number of pixels they were estimated from."""
    total = weight.sum().clamp(min=1)
    mean = (density * weight[:, None]).sum(0) / total
    about = density - mean if convention.centred else density
    leading, second = torch.linalg.eigh((about * weight[:, None]).T @ about / total)[1].T.flip(0)[:2]
    leading = leading * (-1.0 if leading @ mean < 0 else 1.0)
    t = density @ torch.stack([second, leading], 1)
    if convention.tissue == "length":
        long = t.norm(dim=1) > convention.threshold
        t, weight = t[long], weight[long]
    angle = torch.atan2(t[:, 1], t[:, 0])
    ends = [_weighted_quantile(angle, weight, q) for q in ANGLES]
    vectors = torch.stack([second * end.cos() + leading * end.sin() for end in ends], 1)
    return ordered(vectors, convention), weight.sum()


def _weighted_quantile(values: Tensor, weight: Tensor, q: float) -> Tensor:
    """The value at rank q (n - 1), each value repeated by its count; 0 if there are none."""
    if len(values) == 0:
        return values.new_zeros(())
    order = values.argsort()
    below = weight[order].double().cumsum(0)
    return values[order][torch.searchsorted(below, q * (below[-1] - 1), right=True).clamp(max=len(order) - 1)]
