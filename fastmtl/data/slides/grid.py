"""A grid of regions over a slide."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..dataset import Region
from .slide import Slide

_SAME_MPP = 0.05  # scanners of one resolution differ by less: 0.4936 to 0.5047 at 20x


@dataclass(frozen=True)
class GridOptions:
    """How a whole slide is cut into tiles.

    Attributes:
        tile_size: side of a tile, pixels at `mpp` (at level 0 where `mpp` is 0).
        mpp: micrometres per pixel of the tiles; 0 takes level 0 at any resolution.
        overlap: pixels that neighbouring tiles share.
        min_tissue: smallest tissue fraction of a tile, 0..1.
    """

    tile_size: int = 256
    mpp: float = 0.0
    overlap: int = 0
    min_tissue: float = 0.5


def level_for(slide: Slide, mpp: float) -> tuple[int, float]:
    """The level to read for `mpp` micrometres per pixel (the coarsest that is not coarser), and its pixels per output
    pixel.

    Raises:
        ValueError: the slide's scale is unknown, or even its finest level is coarser.
    """
    if slide.mpp is None:
        raise ValueError(
            f"{slide.path} says no mpp that is plausible; give it in a manifest's column mpp (slide,mpp), open it with "
            "mpp=..., or take level 0 (data.mpp = 0, `level`)"
        )
    if not mpp > 0:
        raise ValueError(f"`mpp` must be above 0 micrometres per pixel; got {mpp}")
    if mpp < slide.mpp * (1 - _SAME_MPP):
        raise ValueError(
            f"`mpp` {mpp:g} is finer than {slide.path} was scanned, {slide.mpp:g}: enlarging would invent detail"
        )
    scales = [slide.mpp * level.downsample for level in slide.levels]
    number = max(number for number, scale in enumerate(scales) if number == 0 or scale <= mpp * (1 + _SAME_MPP))
    return number, mpp / scales[number]


def grid(
    slide: Slide,
    tile_size: int,
    *,
    mpp: float | None = None,
    level: int | None = None,
    overlap: int = 0,
    min_tissue: float = 0.0,
) -> list[Region]:
    """Regions that cover the scanned area, row by row; those at the right and bottom edge may reach beyond it.

    Args:
        slide: an open slide.
        tile_size: pixels a side, at that resolution.
        mpp: micrometres per pixel. Regions are of the coarsest level that is not coarser, and as large as resampling to
            `tile_size` requires.
        level: instead of `mpp`: the level; `tile_size` is then in its pixels.
        overlap: pixels shared by neighbours, at that resolution.
        min_tissue: regions with a smaller tissue fraction (0 to 1) are left out; 0 does not look for tissue.

    Raises:
        ValueError: neither or both of `mpp` and `level`, no such level, a resolution finer than the slide's, or a tile
            larger than the slide.

    >>> from fastmtl import data
    >>> slide = data.open_slide("slide.svs")  # doctest: +SKIP
    >>> regions = data.grid(slide, 256, mpp=0.5, min_tissue=0.5)  # doctest: +SKIP
    """
    if (mpp is None) == (level is None):
        raise ValueError(f"give one of `mpp` and `level`; got mpp={mpp}, level={level}")
    if tile_size < 1 or not 0 <= overlap < tile_size:
        raise ValueError(f"`overlap` must be 0 to `tile_size` - 1; got tile_size={tile_size}, overlap={overlap}")
    if not 0 <= min_tissue <= 1:
        raise ValueError(f"`min_tissue` is a fraction, 0 to 1; got {min_tissue}")
    number, scale = level_for(slide, mpp) if mpp is not None else (level or 0, 1.0)
    if not 0 <= number < len(slide.levels):
        raise ValueError(f"`level` must be 0 to {len(slide.levels) - 1} in {slide.path}; got {level}")
    side, downsample = max(1, round(tile_size * scale)), slide.levels[number].downsample
    left, top, width, height = slide.bounds
    if side * downsample > max(width, height) * (1 + _SAME_MPP):
        pixels = round(side * downsample)
        raise ValueError(f"a tile would be {pixels} level-0 pixels wide, and {slide.path} is {width}x{height}")
    step = (tile_size - overlap) * scale * downsample
    regions = [
        Region(slide.path, x, y, side, side, number)
        for y in _starts(top, height, side * downsample, step)
        for x in _starts(left, width, side * downsample, step)
    ]
    return [region for region in regions if min_tissue == 0 or slide.tissue_fraction(region) >= min_tissue]


def cut(slide: Slide, options: GridOptions) -> list[Region]:
    """`grid` with its arguments from `options`."""
    mpp, level = (options.mpp, None) if options.mpp else (None, 0)
    size, overlap, least = options.tile_size, options.overlap, options.min_tissue
    return grid(slide, size, mpp=mpp, level=level, overlap=overlap, min_tissue=least)


def _starts(first: int, length: int, side: float, step: float) -> list[int]:
    """Start positions of tiles that cover `length`, level-0 pixels."""
    count = 1 + max(0, math.ceil((length - side) / step - 1e-9))
    return [first + round(number * step) for number in range(count)]
