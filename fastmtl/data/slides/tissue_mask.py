"""Find tissue: the colourful part of a small picture of a slide.

Otsu's threshold (1979) is applied to the difference between a pixel's largest and smallest channel. CLAM (Lu et al.
2021) applies it to HSV saturation, which is noisy in dark pixels. Otsu always
finds two classes, so its threshold is limited to the range between empty glass and stained tissue. Excluded: black
(borders, missing scans, black pens) and the hues of green, blue and red pens, which no stain has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...utils.optional_imports import require

Mask = NDArray[np.bool_]

_LEAST, _MOST = 12, 20  # grey levels between channels: empty glass is below the first, tissue above the second
_BLACK = 50  # of the brightest channel; the densest haematoxylin at this scale is above
_SPECKLE = 3  # pixels across: dust and noise, by a median


@dataclass(frozen=True, eq=False)
class TissueMask:
    """The tissue mask of a whole slide.

    Attributes:
        bits: uint8 [n], the mask row by row, eight pixels in a byte: an index opens faster.
        shape: (h, w) of the mask.
        width: of the slide, level-0 pixels.
        height: likewise.
    """

    bits: NDArray[np.uint8]
    shape: tuple[int, int]
    width: int
    height: int

    @classmethod
    def of(cls, mask: Mask, width: int, height: int) -> TissueMask:
        """Pack a mask bool [h, w]."""
        return cls(np.packbits(mask), (mask.shape[0], mask.shape[1]), width, height)

    @cached_property
    def mask(self) -> Mask:
        """bool [h, w]."""
        height, width = self.shape
        return np.unpackbits(self.bits, count=height * width).reshape(height, width).astype(bool)

    @property
    def share(self) -> float:
        """The tissue fraction of the slide, 0 to 1."""
        return float(self.mask.mean())

    def fraction(self, x: float, y: float, width: float, height: float) -> float:
        """The tissue fraction of a rectangle (level-0 pixels), 0 to 1; areas outside the slide are not tissue."""
        down, across = self.shape[0] / self.height, self.shape[1] / self.width  # mask pixels per slide pixel
        rows = np.clip(np.array([y, y + height]) * down, 0, self.shape[0])
        columns = np.clip(np.array([x, x + width]) * across, 0, self.shape[1])
        (top_left, top_right), (bottom_left, bottom_right) = _between(_between(self._sums, rows).T, columns).T
        inside = bottom_right - bottom_left - top_right + top_left
        return float(np.clip(inside / max(width * down * height * across, 1e-9), 0, 1))

    @cached_property
    def _sums(self) -> NDArray[np.uint32]:
        sums = np.zeros((self.shape[0] + 1, self.shape[1] + 1), np.uint32)
        np.cumsum(self.mask, axis=0, out=sums[1:, 1:])
        np.cumsum(sums, axis=1, out=sums)
        return sums


def tissue_pixels(picture: NDArray[np.uint8]) -> Mask:
    """The tissue pixels of a thumbnail, RGB uint8 [h, w, 3]: bool [h, w]."""
    red, green, blue = (picture[..., channel].astype(np.int16) for channel in range(3))
    largest, smallest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    colourful = largest - smallest
    never = (largest < _BLACK) | _ink(red, green, blue)
    counts = np.bincount(colourful[~never], minlength=256)[:256]
    found = ~never & (colourful > np.clip(_otsu(counts), _LEAST, _MOST))
    image = require("PIL.Image", "finding tissue")
    median = require("PIL.ImageFilter", "finding tissue").MedianFilter(_SPECKLE)
    return np.asarray(image.fromarray(found.astype(np.uint8) * 255).filter(median)) > 127


def _ink(red: NDArray, green: NDArray, blue: NDArray) -> Mask:
    """Pens. Haematoxylin and eosin take more green than red and blue; DAB leaves more red than green than blue;
    haematoxylin alone may leave a little more green than red."""
    green_pen = green > np.maximum(red, blue) + 12
    blue_pen = (blue > red + 60) & (green > red + 20)
    red_pen = (red > 130) & (red > green + 110) & (np.abs(green - blue) < 30)
    return green_pen | blue_pen | red_pen


def _otsu(counts: NDArray) -> int:
    """The threshold that splits a histogram [256] with the largest variance between its classes; 0 of an empty one."""
    values = np.arange(256)
    below = np.cumsum(counts)
    above = below[-1] - below
    sum_below = np.cumsum(counts * values)
    between = (sum_below[-1] * below - below[-1] * sum_below) ** 2 / np.maximum(below * above, 1)
    return int(between.argmax())


def _between(sums: NDArray, at: NDArray) -> NDArray[np.float64]:
    """Rows of `sums` at fractional positions, linear in between: sums of a mask that is constant on its pixels."""
    low = np.minimum(at.astype(int), len(sums) - 2)
    share = (at - low)[:, None]
    return sums[low] * (1 - share) + sums[low + 1] * share
