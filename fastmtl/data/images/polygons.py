"""Masks drawn from GeoJSON polygons over a field of view of a slide or image.

A pixel is inside a polygon if the outline winds around the pixel's centre and no hole does. The parts of a MultiPolygon
may overlap, holes may overlap or reach beyond the outline, and an outline that crosses itself covers all its loops, as
QuPath shows it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..sizes import check_pixels
from .geojson import read_polygons

POLYGON_SUFFIXES = frozenset({".geojson", ".json"})
_MAX_CLASSES = 256
_MAX_DRAWN = 2**32  # pixels of the rectangles around all polygons of a mask: 20 seconds


@dataclass(frozen=True)
class Polygons:
    """The polygons of a file inside a rectangle; a `Drawn`.

    Attributes:
        file: GeoJSON: a FeatureCollection, a Feature, a geometry or a list of features; Polygon and MultiPolygon with
            holes. Lines and points are ignored.
        x: left edge of the rectangle, level-0 pixels of the slide (pixels of the image).
        y: top edge, likewise.
        width: pixels drawn.
        height: likewise.
        downsample: level-0 pixels per drawn pixel.
        classes: () draws every polygon as 255. Otherwise names: a polygon is drawn as the index of its class among
            them, and index 0 is the background. Where polygons overlap, the later one shows.
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
            ValueError: the file is not GeoJSON, has objects and no polygon, or a polygon of a class that is not among
                `classes`; the rectangle is larger than `MAX_PIXELS`; so many polygons overlap that drawing them takes
                minutes.
        """
        from ...kernels.polygons_numba import draw_polygons

        check_pixels(self.width, self.height)
        found = read_polygons(self.file)
        left, top = self.x - self.offset[0], self.y - self.offset[1]
        right, bottom = left + self.width * self.downsample, top + self.height * self.downsample
        boxes = found.boxes
        inside = (boxes[:, 0] < right) & (boxes[:, 1] < bottom) & (boxes[:, 2] > left) & (boxes[:, 3] > top)
        chosen = np.flatnonzero(inside)
        low, high = np.maximum(boxes[chosen, :2], (left, top)), np.minimum(boxes[chosen, 2:], (right, bottom))
        drawn = float((np.ceil((high - low) / self.downsample) + 1).prod(1).sum())  # pixels
        if drawn > _MAX_DRAWN:
            raise ValueError(
                f"{self.file}: {len(chosen):,} polygons cover {self.width}x{self.height} pixels "
                f"{drawn / (self.width * self.height):,.0f} times; remove those that lie below others"
            )
        values = np.array([self._value(found.names[index]) for index in chosen.tolist()], np.uint8)
        pixels = np.zeros((self.height, self.width), np.uint8)
        draw_polygons(
            *(found.points, found.rings, found.polygons, boxes, chosen, values),
            *(float(left), float(top), float(self.downsample), pixels),
        )
        return pixels

    def _value(self, name: str) -> int:
        if not self.classes:
            return 255
        if len(self.classes) > _MAX_CLASSES:
            raise ValueError(f"`classes` may name {_MAX_CLASSES} classes at most; got {len(self.classes)}")
        try:
            return self.classes.index(name)
        except ValueError:
            raise ValueError(
                f"{self.file} has a polygon of class {name or '(none)'!r}; `classes` knows {', '.join(self.classes)}"
            ) from None


def polygon_classes(file: Path) -> dict[str, int]:
    """Class name -> number of polygons in `file`; "" counts those without a class. ValueError as `Polygons.draw`."""
    return dict(Counter(read_polygons(file).names))
