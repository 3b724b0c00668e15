"""Polygons that lie off their slide: drawn on another slide, at another level, or counted from the scanned bounds."""

from __future__ import annotations

from collections.abc import Sequence

from .dataset import Problem, Region, Tile
from .polygons import Polygons, polygons_outside
from .slide_rows import slide_size


def polygons_off_slides(tiles: Sequence[Tile]) -> tuple[Problem, ...]:
    """A notice for each file with polygons partly outside its slide.

    Raises:
        ValueError: no polygon of a file touches its slide, so the masks would all be empty.
    """
    problems = []
    for file, slide, offset in sorted(_pairs(tiles)):
        width, height = slide_size(slide)
        partly, wholly, total = polygons_outside(file, width, height, offset)
        if wholly == total:
            raise ValueError(
                f"{file}: all {total} polygons lie outside {slide} ({width}x{height} pixels); another slide's, of "
                "another level, or counted from the scanned bounds (see the polygons' offset)?"
            )
        if partly:
            problems.append(Problem(file, f"{partly} of {total} polygons reach beyond {slide.name} ({width}x{height})"))
    return tuple(problems)


def _pairs(tiles: Sequence[Tile]) -> set:
    """(polygon file, slide, offset) of every mask drawn from polygons on a slide."""
    return {
        (picture.file, tile.image.slide, picture.offset)
        for tile in tiles
        if isinstance(tile.image, Region)
        for picture in (tile.mask, *tile.values.values())
        if isinstance(picture, Polygons)
    }
