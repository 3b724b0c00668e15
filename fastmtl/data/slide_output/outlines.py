"""The outlines of a map over a slide, as GeoJSON in level-0 coordinates, readable by viewers and `Polygons`.

Outlines follow pixel edges, including holes: drawn at the map's scale they reproduce the map. GDAL traces them from
the file line by line, so memory holds the polygons, not the pixels.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...utils.atomic_io import naming
from ...utils.optional_imports import require


def check_outlines() -> None:
    """Raise MissingExtra if the packages for tracing outlines are not installed."""
    require("rasterio.features", "tracing outlines", "wsi")


def write_outlines(
    path: Path, maps: Mapping[Path, Mapping[int, str]], downsample: float, offset: tuple[float, float] = (0.0, 0.0)
) -> int:
    """Write a FeatureCollection of annotations for QuPath, one polygon each; returns their number.

    Args:
        path: the file.
        maps: TIFF of one 8-bit channel -> value -> class name; 0 is no class, and other values have no outline.
        downsample: level-0 pixels per pixel of the maps.
        offset: (x, y) of their upper left corner, level-0 pixels.
    """
    count = 0
    with naming(path), path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for raster, names in maps.items():
            for geometry, value in _shapes(raster):
                if int(value) in names:
                    geometry = {**geometry, "coordinates": _placed(geometry["coordinates"], downsample, offset)}
                    words = {"objectType": "annotation", "classification": {"name": names[int(value)]}}
                    feature = {"type": "Feature", "properties": words, "geometry": geometry}
                    file.write((",\n" if count else "\n") + json.dumps(feature))
                    count += 1
        file.write("\n]}\n")
    return count


def _shapes(raster: Path) -> Iterator[tuple[dict[str, Any], float]]:
    """Polygons and their values, in the map's own pixels: of a file GDAL heeds no other transform."""
    check_outlines()
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.features import shapes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # slides have no geographic position
        source = rasterio.open(raster)
    with source:
        band = rasterio.band(source, 1)
        yield from shapes(band, mask=band)


def _placed(
    rings: Sequence[Sequence[tuple[float, float]]], downsample: float, offset: tuple[float, float]
) -> list[list[tuple[float, float]]]:
    return [[(x * downsample + offset[0], y * downsample + offset[1]) for x, y in ring] for ring in rings]
