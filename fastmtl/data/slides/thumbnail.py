"""A thumbnail of a slide, read in bands so that no level is held in memory, and its tissue mask."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from ...utils.optional_imports import require
from ..dataset import BACKGROUND
from .codecs import Pixels
from .errors import DamagedPieceError
from .raster import Level
from .tissue_mask import TissueMask, tissue_pixels

_BAND_PIXELS = 2**23
_MAX_THREADS = 4
_MAX_MASK_SIZE = 2048  # pixels of a tissue mask's longer side
_MIN_MASK_PIXEL = 16  # level-0 pixels per mask pixel: about a nucleus, so that nuclei leave no holes


class RegionReader(Protocol):
    """The slide attributes that a thumbnail needs."""

    @property
    def levels(self) -> tuple[Level, ...]: ...
    def read_region(self, x: int, y: int, width: int, height: int, level: int = 0) -> Pixels: ...


def thumbnail(slide: RegionReader, max_size: int, damage: list[DamagedPieceError] | None = None) -> Pixels:
    """RGB uint8 [h, w, 3] of at most `max_size` pixels a side: means over the coarsest level that is no smaller.

    Args:
        slide: an open slide.
        max_size: of the longer side.
        damage: if given, unreadable tiles are appended to it and become background; otherwise they raise.
    """
    if max_size < 1:
        raise ValueError(f"`max_size` must be at least 1 pixel; got {max_size}")
    first = slide.levels[0]
    shrink = max(1.0, max(first.width, first.height) / max_size)
    width, height = max(1, round(first.width / shrink)), max(1, round(first.height / shrink))
    enough = [number for number, level in enumerate(slide.levels) if level.width >= width and level.height >= height]
    level = slide.levels[enough[-1]]
    per_row = level.height / height
    # Bands of whole tile rows if they fit: each tile is decoded once, or twice at the edge of a band.
    rows = max(1, int(max(_BAND_PIXELS / level.width, level.tile_height) / per_row))

    def band(top: int) -> Pixels:
        bottom = min(top + rows, height)
        start, stop = int(top * per_row), min(math.ceil(bottom * per_row), level.height)
        pixels = _read(slide, enough[-1], start, stop, damage)
        box = (0, top * per_row - start, level.width, min(bottom * per_row, level.height) - start)
        image = require("PIL.Image", "making thumbnails")
        return np.asarray(image.fromarray(pixels).resize((width, bottom - top), image.Resampling.BOX, box=box))

    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        return np.concatenate(list(pool.map(band, range(0, height, rows))))


def find_tissue(slide: RegionReader, damage: list[DamagedPieceError]) -> TissueMask:
    """The tissue mask of an open slide; tiles that cannot be read are listed in `damage` and are no tissue."""
    width, height = slide.levels[0].width, slide.levels[0].height
    picture = thumbnail(slide, min(_MAX_MASK_SIZE, -(-max(width, height) // _MIN_MASK_PIXEL)), damage)
    return TissueMask.of(tissue_pixels(picture), width, height)


def _read(slide: RegionReader, number: int, start: int, stop: int, damage: list[DamagedPieceError] | None) -> Pixels:
    """Rows `start` to `stop` of a level; with `damage`, what cannot be read is background."""
    level = slide.levels[number]
    y = round(start * level.downsample)
    try:
        return slide.read_region(0, y, level.width, stop - start, number)
    except DamagedPieceError:
        if damage is None:
            raise
    band = np.full((stop - start, level.width, 3), BACKGROUND, np.uint8)
    for top in range(start // level.tile_height * level.tile_height, stop, level.tile_height):
        for left in range(0, level.width, level.tile_width):
            upper, lower = max(top, start), min(top + level.tile_height, stop)
            width = min(level.tile_width, level.width - left)
            where = round(left * level.downsample), round(upper * level.downsample)
            try:
                part = slide.read_region(*where, width, lower - upper, number)
                band[upper - start : lower - start, left : left + width] = part
            except DamagedPieceError as error:
                damage.append(error)
    return band
