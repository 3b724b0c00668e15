"""The outlines of a map over a slide, as GeoJSON in level-0 coordinates, readable by viewers and `Polygons`.

Outlines follow pixel edges, including holes: drawn at the map's scale they reproduce the map. They are traced while the
file is read, a row of tiles at a time: memory holds neither the map nor its polygons, however noisy it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...utils.atomic_io import naming
from ...utils.optional_imports import require
from .class_colours import class_colour
from .slide_map import read_rows
from .traced import OutlineOptions, TracedPolygons


class Outlines(NamedTuple):
    """What was written: the number of polygons, and the smallest area (pixels of the map) that was not left out."""

    number: int
    min_area: float


def check_outlines(options: OutlineOptions | None = None) -> None:
    """Raise MissingExtra if the packages for tracing outlines are not installed."""
    require("numba", "tracing outlines")
    require("tifffile", "reading maps of slides")
    if options is not None and options.tolerance:
        require("shapely", "simplifying outlines", "wsi")


def write_outlines(
    path: Path,
    maps: Mapping[Path, Mapping[int, str]],
    downsample: float,
    offset: tuple[float, float] = (0.0, 0.0),
    options: OutlineOptions | None = None,
) -> Outlines:
    """Write a FeatureCollection of annotations for QuPath, one polygon each, in the colours of their classes.

    Args:
        path: the file.
        maps: TIFF of one 8-bit channel -> value -> class name; 0 is no class, and other values have no outline.
        downsample: level-0 pixels per pixel of the maps.
        offset: (x, y) of their upper left corner, level-0 pixels.
        options: what is left out; by default nothing, up to `MAX_POINTS`.
    """
    options = options or OutlineOptions()
    check_outlines(options)
    classes = list(dict.fromkeys(name for names in maps.values() for name in names.values()))
    count = 0
    with naming(path), TemporaryFile(dir=path.parent) as spool:
        traced = TracedPolygons(spool, options)
        for raster, names in maps.items():
            traced.trace(read_rows(raster), {value: name for value, name in names.items() if value})
        with path.open("w", encoding="utf-8") as file:
            file.write('{"type": "FeatureCollection", "features": [')
            for name, rings in traced.read():
                feature = {
                    "type": "Feature",
                    "properties": {
                        "objectType": "annotation",
                        "classification": {"name": name, "color": class_colour(name, classes)},
                    },
                    "geometry": {
                        "type": "Polygon",
                        "coordinates": [
                            (ring * downsample + offset).tolist() for ring in _closed(rings, options.tolerance)
                        ],
                    },
                }
                file.write((",\n" if count else "\n") + json.dumps(feature))
                count += 1
            file.write("\n]}\n")
    return Outlines(count, traced.min_area)


def _closed(rings: Sequence[NDArray[np.int32]], tolerance: float) -> list[NDArray[Any]]:
    """The rings with their first point again as the last, simplified."""
    if not tolerance:
        return [np.concatenate([ring, ring[:1]]) for ring in rings]
    import shapely

    polygon: Any = shapely.Polygon(rings[0], rings[1:]).simplify(tolerance)  # stays valid
    return [shapely.get_coordinates(ring) for ring in (polygon.exterior, *polygon.interiors)]
