"""One row of numbers per image that maps densities to output pixels; csrc/stain/stain.hpp has its layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...reference.stain_conventions import LASSO_PENALTY, Convention
from ...reference.stain_normalize import complemented
from .fit import Stains, inverse, solver

OUTSIDE = 240.0
"""Grey level of the pixels that are not `inside`: empty glass."""


@dataclass(frozen=True)
class Output:
    """What happens to a normalised pixel in 0..255.

    Attributes:
        mean: RGB in 0..1, with `std`; None leaves grey levels as they are.
        std: likewise.
        colour: float32 [B, 3, 4], RGB 0..255 and 1 -> RGB 0..255, then clipped to 0..255.
    """

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    colour: Tensor | None = None

    def rows(self, batch: int, device: torch.device) -> Tensor:
        """F [3, 3], f, low and high [3] of each image, float64 [B, 18]."""
        if self.mean is None or self.std is None:
            scale, shift = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        else:
            std = torch.tensor([float(value) for value in self.std], dtype=torch.float64)
            scale = 1 / (255 * std)
            shift = -torch.tensor([float(value) for value in self.mean], dtype=torch.float64) / std
        scale, shift = scale.to(device, non_blocking=True), shift.to(device, non_blocking=True)
        if self.colour is None:
            matrix, constant = scale.diag().expand(batch, 3, 3), shift.expand(batch, 3)
        else:
            colour = self.colour.to(device, torch.float64)
            matrix, constant = colour[..., :3] * scale[:, None], colour[..., 3] * scale + shift
        ends = torch.cat([shift, 255 * scale + shift]).expand(batch, 6)
        return torch.cat([matrix.reshape(batch, 9), constant, ends], 1)


def restaining(
    convention: Convention,
    source: Stains,
    target: Stains,
    output: Output,
    *,
    as_is: Tensor | None = None,
    only: int | None = None,
    alpha: Tensor | None = None,
    beta: Tensor | None = None,
) -> Tensor:
    """Float32 [B, 44].

    as_is: bool [B], images returned unchanged. only: the one stain to keep. alpha, beta: float64 [B, 2], factors and
    addends of the concentrations after scaling to the target's.
    """
    batch, device = len(source.vectors), source.vectors.device
    factor = target.maxima / source.maxima if convention.scaled else torch.ones_like(source.maxima)
    if alpha is not None:
        factor = factor * alpha
    if only is not None:
        chosen = torch.zeros(2, dtype=factor.dtype, device=device)
        chosen[only] = 1
        factor = factor * chosen
    per_octave = -1 / math.log(2)
    forward = per_octave * target.vectors  # [.., 3, 2]: concentrations to base-2 logarithms of light
    start = torch.full((batch, 3), math.log2(convention.light), dtype=torch.float64, device=device)
    if beta is not None:
        start = start + (forward @ beta[..., None])[..., 0]
    matrix, lasso = solver(source.vectors, convention)
    zeros = torch.zeros(batch, 11, dtype=torch.float64, device=device)
    if lasso is not None:
        b = torch.cat([matrix[..., :3].double().flatten(1), zeros[:, :3]], 1)
        penalties = torch.tensor([-LASSO_PENALTY, -LASSO_PENALTY, 0], dtype=torch.float64, device=device)
        R = (forward * factor[:, None]).flatten(1)
        stages = torch.cat([b, penalties.expand(batch, 3), lasso.double(), R, start], 1)
    else:
        if convention.solver == "complement":
            rest = torch.ones_like(factor[:, :1]) if only is None else torch.zeros_like(factor[:, :1])
            into = torch.linalg.inv_ex(complemented(source.vectors))[0]
            away = per_octave * complemented(target.vectors) * torch.cat([factor, rest], 1)[:, None]
        else:
            into, away = inverse(source.vectors), forward * factor[:, None]
        stages = torch.cat([(away @ into).flatten(1), start, zeros], 1)
    keep = torch.zeros(batch, device=device) if as_is is None else as_is
    ends = [torch.full_like(start[:, :1], convention.shift), output.rows(batch, device), keep.double()[:, None]]
    recipe = torch.cat([stages, *ends, torch.full_like(start[:, :1], OUTSIDE)], 1)
    return recipe.nan_to_num(0.0, 0.0, 0.0).float().contiguous()
