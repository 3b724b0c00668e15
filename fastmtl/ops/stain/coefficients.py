"""The coefficients of each image that map densities to output pixels; csrc/stain/stain.hpp has their layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...reference.stain_conventions import Convention
from ..core.constants import to_device
from .fit import Stains
from .passes import Passes

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

    def numbers(self) -> tuple[float, ...]:
        """Scale [3] and shift [3] of grey levels."""
        if self.mean is None or self.std is None:
            return (1.0,) * 3 + (0.0,) * 3
        mean, std = (
            torch.tensor([float(value) for value in part], dtype=torch.float64) for part in (self.mean, self.std)
        )
        return (*(1 / (255 * std)).tolist(), *(-mean / std).tolist())

    def colour_on(self, device: torch.device) -> Tensor | None:
        return None if self.colour is None else self.colour.to(device, non_blocking=True)


def coefficients_of(
    passes: Passes,
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
    device = source.vectors.device
    light = math.log2(convention.light), convention.shift, -1 / math.log(2)
    constants = to_device((*output.numbers(), *light), device)
    colour = output.colour_on(device)
    return passes.coefficients(source, target, convention, constants, colour, alpha, beta, as_is, only, OUTSIDE)
