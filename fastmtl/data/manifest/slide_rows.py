"""A manifest's rows of slides: regions by level or resolution, grids over whole slides, masks of the same extent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..dataset import Region
from ..slides.errors import SlideError
from ..slides.grid import GridOptions, cut, level_for
from ..slides.opened import UnreadableSlideError, opened
from .numbers import parse_integer, parse_mpp
from .path_rule import PathRule
from .table_io import TextTable


def is_region(cells: Mapping[str, str]) -> bool:
    """Whether a row with a slide names a region of it, or means the whole."""
    return any(cells.get(name) for name in ("x", "y", "width", "height"))


def manifest_mpp(table: TextTable, rule: PathRule) -> dict[Path, float]:
    """Slide -> micrometres per pixel of its level 0, from the column mpp of a manifest's rows of whole slides.

    Raises:
        ValueError: a cell is not plausible, or two rows of a slide differ.
    """
    lowered = [name.lower() for name in table.names]
    found: dict[Path, float] = {}
    for number, row in enumerate(table.rows if {"slide", "mpp"} <= set(lowered) else ()):
        cells, place = dict(zip(lowered, row, strict=True)), table.place(number)
        if not cells.get("slide") or not cells.get("mpp") or is_region(cells):
            continue
        slide, mpp = rule.slide(cells["slide"], place), parse_mpp(cells["mpp"], place)
        if found.setdefault(slide, mpp) != mpp:
            raise ValueError(f"{place}: mpp is {mpp:g}, and another row of {cells['slide']} says {found[slide]:g}")
    return found


def read_region(slide: Path, cells: Mapping[str, str], place: str, mpp: float | None = None) -> Region:
    """The region that a row's x, y, width and height name, at its level or mpp.

    Width and height are pixels at that level or mpp; a region by mpp is read from the coarsest level that is not
    coarser. `mpp` is of the slide's level 0, if the manifest gives it.

    Raises:
        ValueError: a cell is missing or not a number, or the slide has no such level or resolution.
    """
    missing = [name for name in ("x", "y", "width", "height") if not cells.get(name)]
    if missing:
        raise ValueError(f"{place}: a region needs x, y, width and height; {missing[0]} is empty")
    x, y, width, height = (parse_integer(cells[name], name, place) for name in ("x", "y", "width", "height"))
    if width < 1 or height < 1:
        raise ValueError(f"{place}: width and height must be above 0; got {width} and {height}")
    if cells.get("mpp"):
        if cells.get("level"):
            raise ValueError(f"{place}: give level or mpp of a region, not both")
        wanted, source = parse_mpp(cells["mpp"], place), opened(slide, place, mpp)
        try:
            level, factor = level_for(source, wanted)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        return Region(slide, x, y, max(1, round(width * factor)), max(1, round(height * factor)), level)
    level = parse_integer(cells["level"], "level", place) if cells.get("level") else 0
    if level:  # level 0 always exists; the file stays closed
        num_levels = len(opened(slide, place).levels)
        if not 0 <= level < num_levels:
            raise ValueError(f"{place}: {slide} has levels 0 to {num_levels - 1}; got level {level}")
    return Region(slide, x, y, width, height, level)


def grid_regions(slide: Path, options: GridOptions, place: str, mpp: float | None = None) -> list[Region]:
    """The tiles of a whole slide, in reading order; empty if it has too little tissue. `mpp` as in `read_region`.

    Raises:
        UnreadableSlideError: it cannot be opened, or is truncated.
        ValueError: it cannot be cut with these `options`.
    """
    source = opened(slide, place, mpp)
    if source.damage:
        raise UnreadableSlideError(f"{place}: {slide}: {source.damage}")
    try:
        return cut(source, options)
    except SlideError as error:  # finding tissue reads the slide
        raise UnreadableSlideError(f"{place}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def same_extent(mask: Path, over: Region, place: str) -> Region:
    """The part of a mask slide that covers what `over` covers: the finest level not finer than the image's own.

    Raises:
        ValueError: the mask slide has another aspect than the slide, so it cannot cover the same glass.
    """
    slide, drawn = opened(over.slide, place), opened(mask, place)
    full, whole = slide.levels[0], drawn.levels[0]
    ratio, other = full.width / whole.width, full.height / whole.height
    if abs(ratio / other - 1) > 0.01:
        raise ValueError(
            f"{place}: the mask {mask} is {whole.width}x{whole.height}, its slide {full.width}x{full.height}: "
            "they do not cover the same extent"
        )
    wanted = slide.levels[over.level].downsample
    coarse_enough = [n for n, level in enumerate(drawn.levels) if level.downsample * ratio >= wanted * 0.99]
    chosen = coarse_enough[0] if coarse_enough else len(drawn.levels) - 1
    scale = wanted / (drawn.levels[chosen].downsample * ratio)
    width, height = max(1, round(over.width * scale)), max(1, round(over.height * scale))
    return Region(mask, round(over.x / ratio), round(over.y / other), width, height, chosen)
