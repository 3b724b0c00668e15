"""Stain normalisation of one image in plain torch, float64, exact per pixel: the definition of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from .stain_conventions import HEMATOXYLIN_EOSIN, LASSO_PENALTY, MAX_CONCENTRATION, RUIFROK, Convention
from .stain_vectors import codes, macenko_vectors, ordered, quantile, tissue, vahadane_vectors


def complemented(vectors: Tensor) -> Tensor:
    """Two vectors and the unit vector across them, [..., 3, 3]."""
    third = torch.linalg.cross(vectors[..., 0], vectors[..., 1])
    third = third / third.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return torch.cat([vectors, third[..., None]], -1)


def concentrations(density: Tensor, vectors: Tensor, convention: Convention) -> Tensor:
    """How much of each stain [3, 2] the densities [3, N] hold: [2, N], or [3, N] with a complement."""
    if convention.solver == "lasso":
        return codes(density, vectors, LASSO_PENALTY)
    return torch.linalg.pinv(complemented(vectors) if convention.solver == "complement" else vectors) @ density


def estimate(pixels: Tensor, method: str, convention: Convention) -> tuple[Tensor, Tensor]:
    """Stain vectors [3, 2] and the 99th percentiles of their concentrations [2] of RGB 0..255 [3, N]."""
    density = convention.densities()[pixels.long()]
    is_tissue = tissue(pixels, convention)
    if method == "ruifrok":
        vectors = torch.tensor(RUIFROK, dtype=torch.float64)
        vectors = vectors / vectors.norm(dim=0)
    elif method == "macenko":
        vectors = macenko_vectors(density, is_tissue, convention)
    else:
        x = density[:, is_tissue]
        vectors = ordered(vahadane_vectors(x, torch.ones_like(x[0])), convention)
        vectors = vectors / vectors.norm(dim=0)
    c = concentrations(density, vectors, convention)
    return vectors, torch.stack([quantile(c[k], 0.99, convention.nearest) for k in range(2)])


def restain(
    pixels: Tensor,
    source: tuple[Tensor, Tensor],
    convention: Convention,
    target: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """RGB 0..255 [3, N] with the stains of `source` replaced by those of `target` (vectors, 99th percentiles)."""
    if target is None:
        target = torch.tensor(HEMATOXYLIN_EOSIN).double(), torch.tensor(MAX_CONCENTRATION).double()
    c = concentrations(convention.densities()[pixels.long()], source[0], convention)
    if convention.scaled:
        c = c * (target[1] / source[1])[:, None]
    vectors = complemented(target[0]) if convention.solver == "complement" else target[0]
    return (convention.light * (-vectors @ c).exp() - convention.shift).clamp(0, 255)
