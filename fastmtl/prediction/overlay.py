"""A thumbnail of a slide with a map over it, for a look at many slides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import data
from ..data.slide_output.class_colours import Colour
from ..data.slides.opened import opened
from ..data.slides.thumbnail import thumbnail
from ..utils.atomic_io import naming

MAX_SIDE = 1024
_OPACITY = 0.4


def slide_thumbnail(path: Path) -> NDArray[np.uint8]:
    """RGB [h, w, 3]; parts of the slide that cannot be read are background."""
    return thumbnail(opened(path), MAX_SIDE, damage=[])


class Overlay:
    """The map at the size of a thumbnail, while its rows are added.

    Args:
        cut: the slide.
        colours: value -> colour; other values are transparent.
    """

    def __init__(self, cut: data.SlideCut, colours: Mapping[int, Colour]):
        self._colours, self._top = colours, 0
        shrink = max(1.0, cut.width / MAX_SIDE, cut.height / MAX_SIDE)
        width, height = (max(1, round(side / shrink)) for side in (cut.width, cut.height))
        self._columns = ((np.arange(width) + 0.5) * cut.width / width).astype(int)
        self._rows = ((np.arange(height) + 0.5) * cut.height / height).astype(int)
        self._values = np.zeros((height, width), np.uint8)

    def add(self, rows: NDArray[np.uint8]) -> None:
        """The next rows of the map, uint8 [h, width]."""
        first, stop = np.searchsorted(self._rows, [self._top, self._top + len(rows)])
        self._values[first:stop] = rows[self._rows[first:stop] - self._top][:, self._columns]
        self._top += len(rows)

    def save(self, path: Path, slide: NDArray[np.uint8]) -> None:
        """Write the PNG over the slide's thumbnail."""
        from PIL import Image

        height, width = self._values.shape
        pixels = np.array(Image.fromarray(slide).resize((width, height), Image.Resampling.BOX))
        for value, colour in self._colours.items():
            inside = self._values == value
            pixels[inside] = (1 - _OPACITY) * pixels[inside] + _OPACITY * np.array(colour)
        with naming(path):
            Image.fromarray(pixels).save(path, "PNG")
