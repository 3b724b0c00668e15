"""Stain vectors of one image in plain torch, exact per pixel: the definition of Macenko's and Vahadane's estimates."""

from __future__ import annotations

import torch
from torch import Tensor

from .stain_conventions import ANGLES, DICTIONARY_PENALTY, HEMATOXYLIN_EOSIN, LUMINANCE, RUIFROK, Convention


def tissue(pixels: Tensor, convention: Convention) -> Tensor:
    """Which pixels (RGB 0..255, [3, N]) are tissue, bool [N]; for "length" all, until their angles are known."""
    density = convention.densities()[pixels.long()]
    if convention.tissue == "all":
        return (density >= convention.threshold).all(0)
    if convention.tissue == "any":
        return (density > convention.threshold).any(0)
    if convention.tissue == "length":
        return torch.ones(pixels.shape[1], dtype=torch.bool)
    levels = pixels.double()
    if convention.tissue == "stretched":
        levels = stretched(torch.bincount(pixels.flatten().long(), minlength=256))[pixels.long()]
    weights = torch.tensor(LUMINANCE, dtype=torch.float64, device=pixels.device)
    return weights @ linear(levels) < luminance_limit(convention.threshold)


def stretched(counts: Tensor) -> Tensor:
    """The 256 grey levels after a contrast stretch, float64: the 2nd and 98th percentile become 0 and 255.

    counts: how often each level occurs in an image, in all channels together, [..., 256].
    """
    levels = torch.arange(256, dtype=torch.float64, device=counts.device)
    below = counts.cumsum(-1)

    def percentile(q: float) -> Tensor:
        rank = q * (below[..., -1:] - 1)
        lower, upper = (torch.searchsorted(below, r.long(), right=True) for r in (rank.floor(), rank.ceil()))
        return lower + (rank - rank.floor()) * (upper - lower)

    low, high = percentile(0.02), percentile(0.98)
    flat, there = high <= low, (counts > 0).double()
    low = torch.where(flat, there.argmax(-1, keepdim=True).double(), low)
    high = torch.where(flat, 255 - there.flip(-1).argmax(-1, keepdim=True).double(), high)
    scaled = ((levels.clamp(low, high) - low) / (high - low).clamp(min=1e-9) * 255).floor()
    return torch.where(high > low, scaled, levels)


def linear(levels: Tensor) -> Tensor:
    """Linear light 0..1 of sRGB grey levels 0..255."""
    value = levels / 255
    return torch.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)


def luminance_limit(threshold: float) -> float:
    """The luminance Y below which round(2.55 L) < 255 threshold."""
    lightness = (255 * threshold - 0.5) / 2.55
    return ((lightness + 16) / 116) ** 3


def macenko_vectors(density: Tensor, kept: Tensor, convention: Convention) -> Tensor:
    """Hematoxylin and eosin, [3, 2], from densities [3, N] and the tissue mask [N].

    The two leading eigenvectors span a plane; the vectors are at the 1st and 99th percentile of the angles in it.
    """
    x = density[:, kept]
    about = x.mean(1, keepdim=True) if convention.centred else torch.zeros_like(x[:, :1])
    vectors = torch.linalg.eigh((x - about) @ (x - about).T)[1]
    leading, second = vectors[:, 2], vectors[:, 1]
    leading = leading * torch.where(leading @ x.mean(1) < 0, -1.0, 1.0)
    t = torch.stack([second @ x, leading @ x])
    if convention.tissue == "length":
        t = t[:, t.square().sum(0).sqrt() > convention.threshold]
    angle = torch.atan2(t[1], t[0])
    ends = [quantile(angle, q, convention.nearest) for q in ANGLES]
    return ordered(torch.stack([second * end.cos() + leading * end.sin() for end in ends], 1), convention)


def ordered(vectors: Tensor, convention: Convention) -> Tensor:
    """Hematoxylin first: the larger red density, or for HistomicsTK the nearer to Ruifrok's hematoxylin; [..., 3,
    2]."""
    by = vectors[..., 0, :]
    if convention.solver == "complement":
        known = torch.tensor(RUIFROK, dtype=vectors.dtype, device=vectors.device)[:, :1]
        by = (vectors * known).sum(-2).abs() / vectors.norm(dim=-2).clamp(min=1e-12)
    vectors = torch.where((by[..., :1] > by[..., 1:])[..., None, :], vectors, vectors.flip(-1))
    return vectors / vectors.norm(dim=-2, keepdim=True).clamp(min=1e-12) if convention.unit else vectors


def quantile(values: Tensor, q: float, nearest: bool) -> Tensor:
    """The q-th quantile of [N]: the element at the rounded rank, or interpolated between the two around it."""
    ordered, rank = values.sort()[0], q * (values.numel() - 1)
    if nearest:
        return ordered[round(rank)]
    low = int(rank)
    return ordered[low] + (rank - low) * (ordered[min(low + 1, values.numel() - 1)] - ordered[low])


def codes(density: Tensor, atoms: Tensor, penalty: float) -> Tensor:
    """The non-negative lasso of densities [3, N] on two atoms [3, 2]: argmin |x - D c|^2 / 2 + penalty sum(c), [2,
    N]."""
    gram, b = atoms.T @ atoms, atoms.T @ density - penalty
    both = torch.linalg.solve(gram, b)
    single = b.clamp(min=0) / gram.diagonal()[:, None]
    better = (single * b)[0] >= (single * b)[1]
    clamped = single * torch.stack([better, ~better])
    return torch.where((both >= 0).all(0), both, clamped)


def vahadane_vectors(
    density: Tensor,
    weight: Tensor,
    penalty: float = DICTIONARY_PENALTY,
    iterations: int = 300,
    tolerance: float = 1e-6,
    start: Tensor | None = None,
) -> Tensor:
    """Vahadane's dictionary of densities [3, N], each counting as `weight` [N] pixels: [3, 2], not yet ordered.

    Alternates the codes and the non-negative atoms of length at most 1 that fit them best.
    """
    atoms = torch.tensor(HEMATOXYLIN_EOSIN, dtype=density.dtype) if start is None else start.clone()
    for _ in range(iterations):
        c = codes(density, atoms, penalty)
        cc, xc, before = (c * weight) @ c.T, (density * weight) @ c.T, atoms.clone()
        for sweep in range(8):
            j = sweep % 2
            made = ((xc[:, j] - cc[1 - j, j] * atoms[:, 1 - j]) / cc[j, j].clamp(min=1e-30)).clamp(min=0)
            if cc[j, j] > 0 and made.norm() > 0:
                atoms[:, j] = made / made.norm().clamp(min=1)
        if (atoms - before).abs().max() < tolerance:
            break
    return atoms
