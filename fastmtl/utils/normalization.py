"""Mean and standard deviation by which images are normalised before a network sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Normalization(NamedTuple):
    """(pixel - mean) / std, per channel.

    Attributes:
        mean: RGB in 0..1.
        std: RGB in 0..1, positive.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float]) -> Normalization:
        """From three numbers each."""
        (red, green, blue), (spread_red, spread_green, spread_blue) = mean, std
        return cls((red, green, blue), (spread_red, spread_green, spread_blue))

    def __str__(self) -> str:
        return " / ".join(f"{name} {' '.join(f'{value:.4g}' for value in self[i])}" for i, name in enumerate(_NAMES))

    def near(self, other: Normalization) -> bool:
        """Whether both are the same up to rounding to three digits."""
        return all(abs(a - b) < 2e-3 for a, b in zip((*self.mean, *self.std), (*other.mean, *other.std), strict=True))


_NAMES = ("mean", "std")
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of torchvision's weights, and of most others trained on ImageNet."""
HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Of weights converted from TensorFlow, whose images are in -1..1."""
