"""Probabilities over a slide, written row by row: a tiled, pyramidal OME-TIFF with a channel for each class."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...utils.optional_imports import require
from .slide_map import TILE, Level, level_sizes


class ProbabilityMap:
    """An OME-TIFF being written. A level has every second pixel of the one before, as in `SlideMap`.

    Args:
        path: the file; written by `close`; until then its parts are unnamed files in its folder.
        width: pixels.
        height: likewise.
        names: of the channels.
        mpp: micrometres per pixel; None if unknown.
    """

    def __init__(self, path: Path, width: int, height: int, names: Sequence[str], *, mpp: float | None):
        self.path, self._names, self._mpp = path, list(names), mpp
        self._levels = [[Level(*size, path.parent) for _ in names] for size in level_sizes(width, height)]

    def add(self, rows: NDArray[np.uint8]) -> None:
        """Append rows, uint8 [C, h, width]: 255 is certain."""
        for channels in self._levels:
            odd = channels[0].num_rows % 2
            for level, own in zip(channels, rows, strict=True):
                level.add(own)
            rows = rows[:, odd::2, ::2]

    def close(self) -> None:
        """Write the file."""
        size = {} if self._mpp is None else {"PhysicalSizeX": self._mpp, "PhysicalSizeY": self._mpp}
        words = {"axes": "CYX", "Channel": {"Name": self._names}, **size}
        with require("tifffile", "writing maps of slides").TiffWriter(self.path, bigtiff=True, ome=True) as file:
            for number, channels in enumerate(self._levels):
                file.write(
                    chain.from_iterable(level.tiles() for level in channels),
                    shape=(len(channels), channels[0].height, channels[0].width),
                    dtype=np.uint8,
                    tile=(TILE, TILE),
                    photometric="minisblack",
                    compression="adobe_deflate",
                    subifds=None if number else len(self._levels) - 1,
                    subfiletype=int(number > 0),
                    metadata=None if number else words,
                )
        self.discard()

    def discard(self) -> None:
        """Delete the temporary parts."""
        for level in chain.from_iterable(self._levels):
            level.discard()
