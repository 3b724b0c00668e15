"""Estimate stains from the sums and histograms of the passes (for a whole batch, on its device) or from a table of
colours."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...reference.stain_conventions import ANGLES, LASSO_PENALTY, LUMINANCE, RUIFROK, Convention
from ...reference.stain_normalize import concentrations
from ...reference.stain_vectors import linear, luminance_limit, ordered, stretched
from .dictionary import dictionary, mean_densities, tissue_densities, vahadane
from .passes import ANGLE_BINS, CONCENTRATION_BINS, Mask, Passes
from .pixels import Pixels

LEAST_SINE_SQUARE = 1e-3  # two vectors less than 1.8 degrees apart are one stain
LEAST_CONCENTRATION = 1e-2
LEAST_SPREAD = 1e-3  # variance of the density, summed over its channels: below this the tissue has one colour


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
    densities = convention.densities()
    if convention.tissue == "all":
        return Mask(1, limit=int((densities >= convention.threshold).sum()) - 1)
    if convention.tissue == "any":
        return Mask(2, limit=int((densities > convention.threshold).sum()) - 1)
    if convention.tissue == "length":
        return Mask(0)
    device = pixels.images.device
    levels = torch.arange(256, dtype=torch.float64, device=device).expand(pixels.batch, 256)
    if convention.tissue == "stretched":
        flat, kept = pixels.planes().flatten(1).long(), pixels.kept()
        amounts = torch.ones_like(flat) if kept is None else kept[:, None].expand(-1, 3, -1).flatten(1).long()
        counts = torch.zeros(pixels.batch, 256, dtype=torch.int64, device=device).scatter_add_(1, flat, amounts)
        levels = torch.stack([stretched(row) for row in counts])
    weights = torch.tensor(LUMINANCE, dtype=torch.float64, device=device)
    tables = (linear(levels)[:, None] * weights[:, None]).float().contiguous()
    return Mask(3, tables=tables, threshold=luminance_limit(convention.threshold))


def principal_plane(moments: Tensor, centred: bool) -> Tensor:
    """The second and the leading eigenvector, float64 [B, 2, 3]; the leading one points towards the tissue."""
    number = moments[:, :1].clamp(min=1)
    mean, products = moments[:, 1:4] / number, moments[:, 4:] / number
    square = products[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].view(-1, 3, 3)
    if centred:
        square = square - mean[:, :, None] * mean[:, None]
    vectors = torch.linalg.eigh(square)[1] if square.device.type == "cpu" else eigenvectors(square)
    leading, second = vectors[..., 2], vectors[..., 1]
    leading = leading * torch.where((leading * mean).sum(1, keepdim=True) < 0, -1.0, 1.0)
    return torch.stack([second, leading], 1)


def spread(moments: Tensor) -> Tensor:
    """Variance of the density, summed over its channels, [B]."""
    number = moments[:, :1].clamp(min=1)
    return (moments[:, [4, 7, 9]] / number - (moments[:, 1:4] / number) ** 2).sum(1)


def eigenvectors(A: Tensor, sweeps: int = 8) -> Tensor:
    """Columns by rising eigenvalue of symmetric A [B, 3, 3], by Jacobi rotations, without waiting for a GPU."""
    A, V = A.clone(), torch.eye(3, dtype=A.dtype, device=A.device).repeat(len(A), 1, 1)
    for _ in range(sweeps):
        for p, q in ((0, 1), (0, 2), (1, 2)):
            off = A[:, p, q]
            difference = (A[:, q, q] - A[:, p, p]) / 2
            sign = torch.where(difference < 0, -1.0, 1.0)
            t = sign * off / (difference.abs() + (difference**2 + off**2).sqrt() + 1e-300)
            c = (1 + t * t).rsqrt()
            J = torch.eye(3, dtype=A.dtype, device=A.device).repeat(len(A), 1, 1)
            J[:, p, p] = J[:, q, q] = c
            J[:, p, q], J[:, q, p] = c * t, -c * t
            A, V = J.mT @ A @ J, V @ J
    order = A.diagonal(dim1=1, dim2=2).argsort(1)
    return V.gather(2, order[:, None].expand(-1, 3, -1))


def quantiles(counts: Tensor, q: Tensor, nearest: bool) -> Tensor:
    """Positions of the quantiles q (broadcast to [..., Q]) in the histograms [..., bins], in bins from 0; float64."""
    below = counts.cumsum(-1, dtype=torch.int64)
    rank = q * (below[..., -1:] - 1).clamp(min=0).double()
    rank = rank.round() if nearest else rank
    at = torch.searchsorted(below, rank.floor().long(), right=True).clamp(max=counts.shape[-1] - 1)
    own = counts.gather(-1, at).clamp(min=1)
    return at + (rank + 0.5 - (below.gather(-1, at) - own)) / own


def from_diamond(at: Tensor) -> Tensor:
    """Unit vectors [..., 2] at positions in the histogram of diamond angles."""
    angle = at * (4 / ANGLE_BINS) - 2
    x = torch.where(angle < 0, angle + 1, 1 - angle)
    y = torch.where(angle < 0, x.abs() - 1, 1 - x.abs())
    return torch.nn.functional.normalize(torch.stack([x, y], -1), dim=-1)


def solver(vectors: Tensor, convention: Convention) -> tuple[Tensor, Tensor | None]:
    """What `Passes.concentrations` takes for vectors [B, 3, 2]: float32 [B, 2, 4] and, for the lasso, [B, 2]."""
    zero = torch.zeros_like(vectors[:, 0, :, None])
    if convention.solver == "lasso":
        product = (vectors[..., 0] * vectors[..., 1]).sum(1)
        pair = torch.stack([product, 1 / (1 - product**2).clamp(min=1e-9)], 1)
        matrix = torch.cat([vectors.mT, zero - LASSO_PENALTY], 2)
        return matrix.float().contiguous(), pair.float().contiguous()
    return torch.cat([inverse(vectors), zero], 2).float().contiguous(), None


def inverse(vectors: Tensor) -> Tensor:
    """The least-squares inverse of [B, 3, 2], [B, 2, 3]; large instead of infinite numbers for equal vectors."""
    gram = vectors.mT @ vectors
    a, b, c = gram[:, 0, 0], gram[:, 0, 1], gram[:, 1, 1]
    determinant = (a * c - b * b).clamp(min=1e-9)
    adjugate = torch.stack([torch.stack([c, -b], 1), torch.stack([-b, a], 1)], 1)
    return adjugate @ vectors.mT / determinant[:, None, None]


def maxima(passes: Passes, pixels: Pixels, vectors: Tensor, convention: Convention, pooled: bool = False) -> Tensor:
    """The 99th percentiles of the concentrations, float64 [B, 2], or [1, 2] of all images together."""
    matrix, lasso = solver(vectors.expand(pixels.batch, 3, 2), convention)
    densities = table(convention, vectors.device)
    ends = torch.stack([densities[-1], densities[0]])
    reach = (
        (matrix[..., :3, None] * ends).amax(-1).sum(-1) if lasso is None else matrix.new_full((len(matrix), 2), 10.0)
    )
    reach = reach.nan_to_num(16.0).clamp(1e-3, 16.0)
    counts = passes.concentrations(pixels, densities, matrix, lasso, (CONCENTRATION_BINS / reach).contiguous())
    if pooled:
        counts, reach = counts.sum(0, keepdim=True, dtype=torch.int64), reach[:1]
    at = quantiles(counts, torch.tensor([0.99], dtype=torch.float64, device=counts.device), convention.nearest)
    return at[..., 0] * reach.double() / CONCENTRATION_BINS


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
        known = torch.tensor(RUIFROK, dtype=torch.float64, device=moments.device)
        vectors = (known / known.norm(dim=0)).expand(len(moments), 3, 2)
    elif method == "macenko":
        basis = principal_plane(moments, convention.centred)
        least = convention.threshold**2 if convention.tissue == "length" else -math.inf
        on_device = basis.expand(pixels.batch, 2, 3).float().contiguous()
        counts = passes.angles(pixels, densities, mask, on_device, least)
        counts = counts.sum(0, keepdim=True, dtype=torch.int64) if pooled else counts
        enough = counts.sum(1) >= min_tissue
        ends = torch.tensor(ANGLES, dtype=torch.float64, device=counts.device)
        places = quantiles(counts, ends.expand(len(counts), 2), convention.nearest)
        vectors = ordered((from_diamond(places) @ basis).mT, convention)
    else:
        vectors = ordered(vahadane(passes, pixels, mask, convention, pooled), convention)
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    if method != "ruifrok":
        enough = enough & (spread(moments) > LEAST_SPREAD)
    found = Stains(vectors, maxima(passes, pixels, vectors, convention, pooled))
    return Estimate(found, enough & are_two(found))


def are_two(stains: Stains) -> Tensor:
    """Bool [B]: whether the vectors are finite and of two stains, and the image contains both."""
    return are_apart(stains.vectors) & (stains.maxima > LEAST_CONCENTRATION).all(1)


def are_apart(vectors: Tensor) -> Tensor:
    """Bool [B]: whether vectors [B, 3, 2] of any length are finite and of two directions."""
    unit = torch.nn.functional.normalize(vectors, dim=1)
    own, product = unit.square().sum(1), unit.prod(2).sum(1)
    return (own.prod(1) - product**2 > LEAST_SINE_SQUARE) & vectors.isfinite().all((1, 2))


def from_colours(colours: Tensor, method: str, convention: Convention, min_tissue: int) -> Estimate:
    """Stains of pooled colours (`Passes.colours`), as `estimate` does; one, [1, ...]."""
    density, weight = tissue_densities(colours, convention)
    number = weight.sum()
    if method == "ruifrok":
        vectors = torch.tensor(RUIFROK, dtype=torch.float64)
        vectors = vectors / vectors.norm(dim=0)
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
