"""Masks drawn from GeoJSON polygons, as QuPath and other viewers export them, over a field of view of a slide or image.

Geometry is shapely's and rasterisation rasterio's (GDAL's): a pixel is inside when its centre is.
"""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..extras import require

# rasterio silences a warning of its own by a switch of the whole process: two threads at once let it through.
_RASTERIO = threading.Lock()

POLYGON_SUFFIXES = frozenset({".geojson", ".json"})


@dataclass(frozen=True)
class Polygons:
    """The polygons of a file inside a rectangle; a `Drawn`.

    Attributes:
        file: GeoJSON: a FeatureCollection, a Feature, a geometry or a list of features; Polygon and MultiPolygon with
            holes. Lines and points are passed over.
        x: left edge of the rectangle, level-0 pixels of the slide (pixels of the image).
        y: top edge, likewise.
        width: pixels drawn.
        height: likewise.
        downsample: level-0 pixels per drawn pixel.
        classes: () draws every polygon as 255. Otherwise names: a polygon is drawn as the position of its class among
            them, and position 0 is what stands where no polygon is. Where polygons overlap the later one shows.
        offset: (x, y) added to the file's coordinates: the slide's bounds, where the viewer counted from them.
    """

    file: Path
    x: float
    y: float
    width: int
    height: int
    downsample: float = 1.0
    classes: tuple[str, ...] = ()
    offset: tuple[float, float] = (0.0, 0.0)

    def draw(self) -> NDArray[np.uint8]:
        """uint8 [height, width].

        Raises:
            ValueError: the file is not GeoJSON, has no polygon, or a polygon of a class that is not among `classes`.
        """
        features = require("rasterio.features", "drawing polygons", "wsi")
        affine = require("affine", "drawing polygons", "wsi")
        shapely = require("shapely", "drawing polygons", "wsi")
        drawing = _read(self.file)
        left, top = self.x - self.offset[0], self.y - self.offset[1]
        window = shapely.box(left, top, left + self.width * self.downsample, top + self.height * self.downsample)
        found = sorted(drawing.tree.query(window).tolist())
        shapes = [(drawing.shapes[index], self._value(drawing.names[index])) for index in found]
        if not shapes:
            return np.zeros((self.height, self.width), np.uint8)
        transform = affine.Affine(self.downsample, 0, left, 0, self.downsample, top)
        with _RASTERIO:
            return features.rasterize(shapes, (self.height, self.width), transform=transform, dtype="uint8")

    def _value(self, name: str) -> int:
        if not self.classes:
            return 255
        try:
            return self.classes.index(name)
        except ValueError:
            raise ValueError(
                f"{self.file} has a polygon of class {name or '(none)'!r}; `classes` knows {', '.join(self.classes)}"
            ) from None


class _Drawing(NamedTuple):
    shapes: list[Any]
    names: list[str]
    tree: Any


def polygon_classes(file: Path) -> dict[str, int]:
    """Class name -> number of polygons in `file`; "" counts those without a class. ValueError as `Polygons.draw`."""
    counts: dict[str, int] = {}
    for name in _read(file).names:
        counts[name] = counts.get(name, 0) + 1
    return counts


def polygons_outside(
    file: Path, width: int, height: int, offset: tuple[float, float] = (0.0, 0.0)
) -> tuple[int, int, int]:
    """Polygons that reach beyond a slide of `width` x `height` level-0 pixels, those that do not touch it, and all.

    A pixel of tolerance: viewers draw along the edge.
    """
    drawing = _read(file)
    partly = wholly = 0
    for shape in drawing.shapes:
        left, top, right, bottom = shape.bounds
        left, right, top, bottom = left + offset[0], right + offset[0], top + offset[1], bottom + offset[1]
        partly += left < -1 or top < -1 or right > width + 1 or bottom > height + 1
        wholly += right <= 0 or bottom <= 0 or left >= width or top >= height
    return partly, wholly, len(drawing.shapes)


def _read(file: Path) -> _Drawing:
    try:
        state = file.stat()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(state.st_mode):
        raise ValueError(f"{file} is not a file")
    return _parse(file, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=32)
def _parse(file: Path, _mtime: int, _size: int) -> _Drawing:
    """Parsed once a process for each state of the file: thousands of tiles share a slide's polygons."""
    shapely = require("shapely", "drawing polygons", "wsi")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not GeoJSON: {error}") from error
    shapes, names = [], []
    for number, (geometry, name) in enumerate(_geometries(content, file), 1):
        try:
            shape = shapely.make_valid(shapely.geometry.shape(geometry))
            finite = bool(np.isfinite(shapely.get_coordinates(shape)).all())
        except Exception as error:  # shapely raises many types on malformed coordinates
            raise ValueError(f"{file}: polygon {number} cannot be read: {error}") from error
        if not finite:
            raise ValueError(f"{file}: polygon {number} has a coordinate that is not finite")
        for part in shapely.get_parts(shape):
            if part.geom_type in ("Polygon", "MultiPolygon") and part.area > 0:
                shapes.append(part)
                names.append(name)
    if not shapes:
        raise ValueError(f"{file} has no polygon")
    return _Drawing(shapes, names, shapely.STRtree(shapes))


def _geometries(content: Any, file: Path, name: str = "") -> Iterator[tuple[dict[str, Any], str]]:
    """(geometry, class name) of every polygon in a GeoJSON object or a list of them."""
    if isinstance(content, list):
        for entry in content:
            yield from _geometries(entry, file, name)
        return
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "FeatureCollection":
        yield from _geometries(content.get("features", []), file, name)
    elif kind == "Feature":
        if content.get("geometry") is not None:
            yield from _geometries(content["geometry"], file, _class_of(content.get("properties")))
    elif kind == "GeometryCollection":
        yield from _geometries(content.get("geometries", []), file, name)
    elif kind in ("Polygon", "MultiPolygon"):
        yield content, name
    elif kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise ValueError(f"{file} is not GeoJSON: expected an object with a GeoJSON `type`; found {str(content)[:60]}")


def _class_of(properties: Any) -> str:
    """QuPath writes {"classification": {"name": ...}}; others "class" or "label"."""
    if not isinstance(properties, dict):
        return ""
    for key in ("classification", "class", "label"):
        value = properties.get(key)
        value = value.get("name") if isinstance(value, dict) else value
        if value is not None and value != "":
            return str(value)
    return ""
