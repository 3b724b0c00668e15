"""The differences between stain libraries: optical density, tissue, solver, percentiles, rounding. One object per
library."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Callable  # noqa: UP035  # reference imports only torch, math and typing

import torch
from torch import Tensor

HEMATOXYLIN_EOSIN = ((0.5626, 0.2159), (0.7201, 0.8012), (0.4062, 0.5581))
"""Macenko's reference: rows R, G, B; columns hematoxylin, eosin."""
MAX_CONCENTRATION = (1.9705, 1.0308)
RUIFROK = ((0.65, 0.07), (0.70, 0.99), (0.29, 0.11))
"""Ruifrok and Johnston's hematoxylin and eosin; their DAB is (0.27, 0.57, 0.78)."""
ANGLES = (0.01, 0.99)
"""Macenko's stains are at these quantiles of the tissue angles."""
LASSO_PENALTY = 0.01
"""Penalty of the concentrations, as in StainTools."""
DICTIONARY_PENALTY = 0.1
"""Penalty of Vahadane's dictionary, as in StainTools and TIAToolbox."""
LUMINANCE = (0.212671, 0.715160, 0.072169)
"""Y of linear R, G, B in 0..1, under D65."""


@dataclass(frozen=True)
class Convention:
    """How one library goes from grey levels to stains and back.

    Attributes:
        name: the library.
        light: Io, the transmitted light at a density of 0.
        read: grey level 0..255 (float64) -> the light that is divided by `light` under the logarithm.
        least_density: densities below it are raised to it.
        shift: subtracted after the exponential, if `read` added it.
        tissue: "all" or "any" channel's density reaches `threshold` ("any": exceeds it), "luminance": the 8-bit L of
            LAB is below 255 * `threshold`, "stretched": likewise after a contrast stretch, "length": the density's
            length in the plane of the stains exceeds `threshold`.
        threshold: see `tissue`.
        centred: covariance about the mean, or the plain second moment.
        nearest: percentiles are an element's value, or interpolated between two.
        unit: estimated vectors are divided by their length.
        solver: "least squares", "lasso" (non-negative, penalty 0.01) or "complement": a third vector across the two
            keeps the residual.
        scaled: concentrations are scaled so that their 99th percentiles agree.
        half_up: uint8 results are rounded to nearest, or truncated.
        lab: Reinhard's space: "cie", "cie 8 bit" (quantised as OpenCV does), "ruderman", or None.
        unbiased: Reinhard's standard deviations divide by n - 1.
    """

    name: str
    light: float
    read: Callable[[Tensor], Tensor]
    least_density: float = -math.inf
    shift: float = 0.0
    tissue: str = "all"
    threshold: float = 0.15
    centred: bool = True
    nearest: bool = False
    unit: bool = True
    solver: str = "least squares"
    scaled: bool = True
    half_up: bool = False
    lab: str | None = None
    unbiased: bool = False

    def densities(self) -> Tensor:
        """Optical density of the 256 grey levels, float64 [256]."""
        levels = torch.arange(256, dtype=torch.float64)
        return (-(self.read(levels) / self.light).log()).clamp(min=self.least_density)

    def __reduce__(self) -> tuple[Callable[[str], Convention], tuple[str]]:
        return _named, (self.name,)  # `read` cannot be pickled, but spawned workers receive a pickled normaliser


def _named(name: str) -> Convention:
    return CONVENTIONS[name]


_STAINTOOLS = Convention(
    "staintools",
    255.0,
    lambda level: level.clamp(min=1),
    least_density=1e-6,
    tissue="luminance",
    threshold=0.8,
    solver="lasso",
    lab="cie 8 bit",
)
CONVENTIONS = {
    "torchstain": Convention(
        "torchstain", 240.0, lambda level: level + 1, nearest=True, unit=False, lab="cie", unbiased=True
    ),
    "staintools": _STAINTOOLS,
    "tiatoolbox": replace(_STAINTOOLS, name="tiatoolbox", tissue="stretched", solver="least squares"),
    "cucim": Convention("cucim", 240.0, lambda level: level.clamp(1, 240), tissue="any", threshold=0.345, half_up=True),
    # In natural logarithms: SDA is the density times 255 / ln 256, so that its magnitude 16 is 0.348.
    "histomicstk": Convention(
        "histomicstk",
        256.0,
        lambda level: level + 1,
        shift=1.0,
        tissue="length",
        threshold=16 * math.log(256) / 255,
        centred=False,
        nearest=True,
        solver="complement",
        scaled=False,
        lab="ruderman",
    ),
}
