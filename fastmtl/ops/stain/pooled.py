"""Stains of pooled colours: the same estimates on a weighted table instead of pixels, for a slide's many tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from ...reference.stain_conventions import ANGLES, RUIFROK, Convention
from ...reference.stain_normalize import concentrations as exact_concentrations
from ...reference.stain_vectors import ordered
from .dictionary import dictionary, mean_densities, tissue_densities
from .fit import LEAST_SPREAD, Estimate, Stains, are_two


def from_colours(colours: Tensor, method: str, convention: Convention, min_tissue: int) -> Estimate:
    """Stains of pooled colours (`Passes.colours`), as `_stain_fit.estimate`; one, [1, ...]."""
    density, weight = tissue_densities(colours, convention)
    number = weight.sum()
    if method == "ruifrok":
        vectors = torch.tensor(RUIFROK, dtype=torch.float64)
        vectors = vectors / vectors.norm(dim=0)
    elif method == "macenko":
        vectors, number = _macenko(density, weight, convention)
    else:
        vectors = ordered(dictionary(density, weight), convention)
        vectors = torch.nn.functional.normalize(vectors, dim=0)
    everything = mean_densities(colours[:, 0], colours[:, 1:5], convention)
    c = exact_concentrations(everything.T, vectors, convention)[:2]
    maxima = torch.stack([_weighted_quantile(row, colours[:, 1], 0.99) for row in c])
    about = density - (density * weight[:, None]).sum(0) / weight.sum().clamp(min=1)
    variance = (about.square().sum(1) * weight).sum() / weight.sum().clamp(min=1)
    found = Stains(vectors[None], maxima[None])
    valid = (number >= min_tissue) & are_two(found)
    if method != "ruifrok":
        valid = valid & (variance > LEAST_SPREAD)
    return Estimate(found, valid)


def _macenko(density: Tensor, weight: Tensor, convention: Convention) -> tuple[Tensor, Tensor]:
    """Vectors [3, 2], and how many pixels stand behind them."""
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
    """The value at rank q (n - 1) of what each value stands for; 0 of nothing."""
    if len(values) == 0:
        return values.new_zeros(())
    order = values.argsort()
    below = weight[order].double().cumsum(0)
    return values[order][torch.searchsorted(below, q * (below[-1] - 1), right=True).clamp(max=len(order) - 1)]
