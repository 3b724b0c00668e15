"""Cut a slide into tiles, and the position of each in a map of the whole slide.

The map has the resolution of the tiles (`tile_size` pixels per side); the edges of its pixels are at
`x * downsample + offset` in level-0 pixels. The map covers all of level 0, not only the scanned area.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..dataset import Region, Tile
from ..patient_names import group_of
from ..slides.errors import SlideError
from ..slides.grid import GridOptions, cut
from ..slides.identity import Identity, identify
from ..slides.opened import opened


@dataclass(frozen=True)
class SlideCut:
    """The tiles of a slide.

    Attributes:
        path: the slide.
        identity: of the file that was cut.
        tiles: row by row, from left to right.
        places: tile id -> (x, y) of its left upper corner in the map.
        fields: tile id -> (x, y, width, height), level-0 pixels.
        tile_size: side of a tile, pixels of the map.
        width: of the map, pixels.
        height: likewise.
        downsample: level-0 pixels per pixel of the map.
        offset: (x, y) of the map's corner, level-0 pixels: below one pixel of the map, and 0 where scanning began at
            the slide's corner.
        mpp: micrometres per pixel of the map; None if unknown.
        tissue: share of what was scanned that is tissue, 0..1.
        problems: see `Slide`.
        mpp_source: see `Slide`.
    """

    path: Path
    identity: Identity
    tiles: tuple[Tile, ...]
    places: Mapping[str, tuple[int, int]]
    fields: Mapping[str, tuple[int, int, int, int]]
    tile_size: int
    width: int
    height: int
    downsample: float
    offset: tuple[float, float]
    mpp: float | None
    tissue: float
    problems: tuple[str, ...]
    mpp_source: str = ""


def cut_slide(path: Path, name: str, options: GridOptions, mpp: float | None = None) -> SlideCut:
    """Cut a slide as training does.

    Args:
        path: the slide.
        name: prefix of its tiles' ids.
        options: see `GridOptions`.
        mpp: micrometres per pixel of level 0, if a manifest gives it.

    Raises:
        SlideError: it cannot be opened, was truncated, or cannot be cut so.
    """
    identity = identify(path)  # before reading, so that later changes are detected
    try:
        slide = opened(path, mpp=mpp)
        if slide.damage:
            raise SlideError(path, slide.damage)
        regions = cut(slide, options)
    except SlideError:
        raise
    except ValueError as error:  # a slide that cannot be opened among them
        raise SlideError(path, str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")) from error
    downsample = options.mpp / slide.mpp if options.mpp and slide.mpp else 1.0
    left, top, width, height = slide.bounds
    first = round(left / downsample), round(top / downsample)
    step = options.tile_size - options.overlap
    tiles, places, fields = [], {}, {}
    for region in regions:
        tile = Tile(f"{name}@{region.x}_{region.y}", region, None, None, group_of(name))
        column, row = (round((at - begin) / (step * downsample)) for at, begin in ((region.x, left), (region.y, top)))
        pixels = round(region.width * slide.levels[region.level].downsample)
        tiles.append(tile)
        places[tile.id] = (first[0] + column * step, first[1] + row * step)
        fields[tile.id] = (region.x, region.y, pixels, pixels)
    full = slide.levels[0]
    return SlideCut(
        path,
        identity,
        tuple(tiles),
        places,
        fields,
        options.tile_size,
        max(1, math.ceil(full.width / downsample - 1e-6)),
        max(1, math.ceil(full.height / downsample - 1e-6)),
        downsample,
        (left - first[0] * downsample, top - first[1] * downsample),
        options.mpp or slide.mpp,
        float(slide.tissue_fraction(Region(path, left, top, width, height))),
        slide.problems,
        slide.mpp_source,
    )
