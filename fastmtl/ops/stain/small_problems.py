"""The small problems between the passes over pixels, for a batch of images; torch's definition, on any device.

On a GPU `stain_fit_triton.py`, `stain_solver_triton.py` and `stain_coefficients_triton.py` in kernels/ solve each of
them in one launch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...reference.stain_conventions import LASSO_PENALTY, Convention
from ...reference.stain_normalize import complemented
from ...reference.stain_vectors import ordered


def principal_plane(moments: Tensor, centred: bool) -> Tensor:
    """The second and the leading eigenvector of `Passes.moments` [B, 10], float64 [B, 2, 3].

    The leading one points towards the tissue, the second one towards blue: the angles' histogram and its interpolated
    quantiles depend on the signs, and solvers differ in them.
    """
    number = moments[:, :1].clamp(min=1)
    mean, products = moments[:, 1:4] / number, moments[:, 4:] / number
    square = products[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].view(-1, 3, 3)
    if centred:
        square = square - mean[:, :, None] * mean[:, None]
    vectors = torch.linalg.eigh(square)[1]
    leading, second = vectors[..., 2], vectors[..., 1]
    leading = leading * torch.where((leading * mean).sum(1, keepdim=True) < 0, -1.0, 1.0)
    second = second * torch.where(second[:, 2:] < 0, -1.0, 1.0)
    return torch.stack([second, leading], 1)


def quantiles(counts: Tensor, ranks: Tensor, nearest: bool, reach: Tensor | None = None) -> Tensor:
    """The quantiles at `ranks` [Q], 0..1, of the histograms [..., bins]: float64 [..., Q].

    In bins from 0, or with `reach` [...], the value after the last bin, as values.
    """
    below = counts.cumsum(-1, dtype=torch.int64)
    rank = ranks * (below[..., -1:] - 1).clamp(min=0).double()
    rank = rank.round() if nearest else rank
    at = torch.searchsorted(below, rank.floor().long(), right=True).clamp(max=counts.shape[-1] - 1)
    own = counts.gather(-1, at).clamp(min=1)
    found = at + (rank + 0.5 - (below.gather(-1, at) - own)) / own
    return found if reach is None else found * reach[..., None].double() / counts.shape[-1]


def directions(places: Tensor, planes: Tensor, convention: Convention, bins: int) -> Tensor:
    """Stains [B, 3, 2], hematoxylin first, at two positions [B, 2] in the histograms of diamond angles, in the planes
    [B, 2, 3]."""
    angle = places * (4 / bins) - 2
    x = torch.where(angle < 0, angle + 1, 1 - angle)
    y = torch.where(angle < 0, x.abs() - 1, 1 - x.abs())
    units = torch.nn.functional.normalize(torch.stack([x, y], -1), dim=-1)
    return ordered((units @ planes).mT, convention)


def solver(
    vectors: Tensor, densities: Tensor, convention: Convention, bins: int
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """For stains [B, 3, 2] what `Passes.concentrations` takes: the matrix float32 [B, 2, 4], for the lasso [B, 2], the
    largest concentration that a histogram of `bins` holds [B, 2], and its bins per unit [B, 2]."""
    zero = torch.zeros_like(vectors[:, 0, :, None])
    if convention.solver == "lasso":
        product = (vectors[..., 0] * vectors[..., 1]).sum(1)
        lasso = torch.stack([product, 1 / (1 - product**2).clamp(min=1e-9)], 1).float().contiguous()
        matrix = torch.cat([vectors.mT, zero - LASSO_PENALTY], 2).float().contiguous()
        reach = matrix.new_full((len(matrix), 2), 10.0)
    else:
        lasso, matrix = None, torch.cat([inverse(vectors), zero], 2).float().contiguous()
        ends = torch.stack([densities[-1], densities[0]])
        reach = (matrix[..., :3, None] * ends).amax(-1).sum(-1).nan_to_num(16.0).clamp(1e-3, 16.0)
    return matrix, lasso, reach, (bins / reach).contiguous()


def inverse(vectors: Tensor) -> Tensor:
    """The least-squares inverse of [B, 3, 2], [B, 2, 3]; large instead of infinite numbers for equal vectors."""
    gram = vectors.mT @ vectors
    a, b, c = gram[:, 0, 0], gram[:, 0, 1], gram[:, 1, 1]
    determinant = (a * c - b * b).clamp(min=1e-9)
    adjugate = torch.stack([torch.stack([c, -b], 1), torch.stack([-b, a], 1)], 1)
    return adjugate @ vectors.mT / determinant[:, None, None]


def valid(moments: Tensor | None, vectors: Tensor, maxima: Tensor, limits: tuple[float, float, float]) -> Tensor:
    """Bool [B]: whether stains [B, 3, 2] and the 99th percentiles of their concentrations [B, 2] are two stains.

    Args:
        moments: [B, 10]; if not None, the tissue must have more than one colour.
        limits: what must be exceeded: the variance of the density summed over its channels, each percentile, and the
            squared sine between the stains.
    """
    spread, least, sine_square = limits
    good = are_apart(vectors, sine_square) & (maxima > least).all(1)
    if moments is None:
        return good
    number = moments[:, :1].clamp(min=1)
    variance = (moments[:, [4, 7, 9]] / number - (moments[:, 1:4] / number) ** 2).sum(1)
    return good & (variance > spread)


def are_apart(vectors: Tensor, sine_square: float) -> Tensor:
    """Bool [B]: whether vectors [B, 3, 2] of any length are finite and of two directions."""
    unit = torch.nn.functional.normalize(vectors, dim=1)
    own, product = unit.square().sum(1), unit.prod(2).sum(1)
    return (own.prod(1) - product**2 > sine_square) & vectors.isfinite().all((1, 2))


def coefficients(
    source: tuple[Tensor, Tensor],
    target: tuple[Tensor, Tensor],
    convention: Convention,
    constants: Tensor,
    colour: Tensor | None,
    alpha: Tensor | None,
    beta: Tensor | None,
    as_is: Tensor | None,
    only: int | None,
    outside: float,
) -> Tensor:
    """Float32 [B, 44] for `Passes.apply`; see `coefficients.coefficients_of`.

    constants: float64 [9]: scale [3] and shift [3] of the output, the base-2 logarithm of the convention's light, its
    shift, and -1 / ln 2.
    """
    (vectors, maxima), (target_vectors, target_maxima) = source, target
    batch, per_octave = len(vectors), constants[8]
    factor = target_maxima / maxima if convention.scaled else torch.ones_like(maxima)
    if alpha is not None:
        factor = factor * alpha
    if only is not None:
        factor = torch.stack([factor[:, k] if k == only else torch.zeros_like(factor[:, k]) for k in range(2)], 1)
    forward = per_octave * target_vectors  # concentrations to base-2 logarithms of light
    start = constants[6].expand(batch, 3)
    if beta is not None:
        start = start + (forward @ beta[..., None])[..., 0]
    zeros = torch.zeros(batch, 11, dtype=torch.float64, device=vectors.device)
    if convention.solver == "lasso":
        product = (vectors[..., 0] * vectors[..., 1]).sum(1)
        pair = torch.stack([product, 1 / (1 - product**2).clamp(min=1e-9)], 1)
        penalties = torch.cat([zeros[:, :2] - LASSO_PENALTY, zeros[:, :1]], 1)
        R = (forward * factor[:, None]).flatten(1)
        stages = torch.cat([vectors.mT.flatten(1), zeros[:, :3], penalties, pair, R, start], 1)
    else:
        if convention.solver == "complement":
            rest = torch.ones_like(factor[:, :1]) if only is None else torch.zeros_like(factor[:, :1])
            into = torch.linalg.inv_ex(complemented(vectors))[0]
            away = per_octave * complemented(target_vectors) * torch.cat([factor, rest], 1)[:, None]
        else:
            into, away = inverse(vectors), forward * factor[:, None]
        stages = torch.cat([(away @ into).flatten(1), start, zeros], 1)
    keep = zeros[:, :1] if as_is is None else as_is.double()[:, None]
    ends = [constants[7].expand(batch, 1), output_rows(constants, colour, batch), keep]
    parts = torch.cat([stages, *ends, torch.full_like(keep, outside)], 1)
    return parts.nan_to_num(0.0, 0.0, 0.0).float().contiguous()


def output_rows(constants: Tensor, colour: Tensor | None, batch: int) -> Tensor:
    """F [3, 3], f, low and high [3] of each image, float64 [B, 18], from scale [3], shift [3], and colour [B, 3, 4]."""
    scale, shift = constants[:3], constants[3:6]
    if colour is None:
        matrix, constant = scale.diag().expand(batch, 3, 3), shift.expand(batch, 3)
    else:
        colour = colour.double()
        matrix, constant = colour[..., :3] * scale[:, None], colour[..., 3] * scale + shift
    ends = torch.cat([shift, 255 * scale + shift]).expand(batch, 6)
    return torch.cat([matrix.reshape(batch, 9), constant, ends], 1)
