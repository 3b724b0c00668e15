"""Notices about files of polygons: drawn on another slide, self-intersecting, of several classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...utils.optional_imports import require
from ...utils.words import few, printable
from ..dataset import Problem, Region, Tile, maps_of
from ..images.geojson import PolygonSet, read_polygons
from ..images.pictures import file_of
from ..images.polygons import BACKGROUND, Polygons
from ..slides.opened import slide_size
from .class_spellings import spelling_problem

_NOTHING = (BACKGROUND, "none", "normal", "negative", "benign", "other", "rest", "unannotated")
_ENOUGH = 4  # files; in fewer, all polygons may be in one quarter by chance


def polygon_notices(tiles: Sequence[Tile]) -> tuple[Problem, ...]:
    """Notices for the files of polygons that masks are drawn from; `check_tiles` reports unreadable ones.

    Raises:
        ValueError: no polygon of a file touches its slide or image, so all its masks would be empty.
    """
    problems: dict[Problem, None] = {}
    names: dict[Path, Counter[str]] = {}
    corners = []
    for picture, image in _drawn(tiles):
        try:
            found = read_polygons(picture.file)
            size = slide_size(image.slide) if isinstance(image, Region) else (picture.width, picture.height)
        except ValueError:
            continue
        names[picture.file] = Counter(map(picture.class_of, found.names))
        if not found.names:
            problems |= dict.fromkeys(Problem(picture.file, reason) for reason in found.notes)
            continue
        reasons = [*found.notes, *_of_several_classes(names[picture.file], picture.classes), *_invalid(found)]
        reasons += _of_the_background(found, picture.classes)
        reasons += _outside(found, picture, file_of(image), *size)
        problems |= dict.fromkeys(Problem(picture.file, reason) for reason in reasons)
        corners.append((found.boxes[:, 2:].max(0) + picture.offset) / size)
    if len(corners) >= _ENOUGH and np.max(corners) < 0.5:
        reason = (
            f"the polygons of all {len(corners)} files are in the upper left quarter of their slides or images; are "
            "they in micrometres, or in pixels of a smaller picture?"
        )
        problems[Problem(next(iter(names)), reason)] = None
    if reason := spelling_problem(sum(names.values(), Counter()), "polygons", "polygons"):
        problems[Problem(next(iter(names)), reason)] = None
    return tuple(problems)


def _drawn(tiles: Sequence[Tile]) -> list[tuple[Polygons, Path | Region]]:
    """One mask of each file of polygons on each slide or image, with the image of its tile; sorted."""
    pairs = {}
    for tile in tiles:
        for _, picture in maps_of(tile):
            if isinstance(picture, Polygons):
                pairs[picture.file, file_of(tile.image), picture.offset, picture.classes] = picture, tile.image
    return [pairs[key] for key in sorted(pairs)]


def _of_several_classes(found: Counter[str], classes: Sequence[str]) -> Iterator[str]:
    names = sorted({*found} - {BACKGROUND})
    if len(names) > 1 and not classes:
        shown = few([printable(name) or "(none)" for name in names], 5)
        yield f"polygons of {len(names)} classes ({shown}) are drawn as one; data.polygon_classes separates them"


def _of_the_background(found: PolygonSet, classes: Sequence[str]) -> Iterator[str]:
    """A first class that is drawn as what nobody has annotated, although its name says that it is something."""
    if classes and classes[0] in found.names and classes[0].casefold() not in _NOTHING:
        yield (
            f"polygons of class {classes[0]!r} are drawn as 0, as everything outside polygons is: it is the first of "
            "data.polygon_classes, which is the background"
        )


def _invalid(found: PolygonSet) -> Iterator[str]:
    """Polygons that are invalid by OGC's rules: viewers draw them in different ways."""
    shapely = require("shapely", "looking at polygons", "wsi")
    outline = np.repeat(np.arange(len(found.rings) - 1), np.diff(found.rings))
    rings = shapely.linearrings(found.points, indices=outline)
    polygons = shapely.polygons(rings, indices=np.repeat(np.arange(len(found.names)), np.diff(found.polygons)))
    wrong = np.flatnonzero(~shapely.is_valid(polygons))
    if len(wrong):
        first = shapely.is_valid_reason(polygons[wrong[0]])
        yield (
            f"{len(wrong)} of {len(polygons)} polygons are invalid ({first}): the area that the outline winds around "
            "is drawn, without the holes"
        )


def _outside(found: PolygonSet, picture: Polygons, image: Path, width: int, height: int) -> Iterator[str]:
    """Polygons beyond the slide or image, with a pixel of tolerance: viewers draw along the edge."""
    left, top, right, bottom = (found.boxes + np.array([*picture.offset, *picture.offset])).T
    total = len(found.names)
    if ((right <= 0) | (bottom <= 0) | (left >= width) | (top >= height)).all():
        raise ValueError(
            f"{picture.file}: all {total} polygons are outside {image} ({width}x{height} pixels); another slide's, of "
            "another level, or counted from the scanned bounds (see the polygons' offset)?"
        )
    partly = int(((left < -1) | (top < -1) | (right > width + 1) | (bottom > height + 1)).sum())
    if partly:
        yield f"{partly} of {total} polygons reach beyond {image.name} ({width}x{height})"
