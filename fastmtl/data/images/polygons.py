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
from .geojson import PolygonSet, read_polygons

POLYGON_SUFFIXES = frozenset({".geojson", ".json"})
IGNORED = 255
"""Value of pixels that count in no loss: the `ignore_index` of class maps."""
BACKGROUND = "background"
"""The name to which classes are renamed that are drawn as 0."""
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
        renamed: (name in the file, name instead) of classes; "" in the file is a polygon without a class, and
            "background" or `classes[0]` instead draws 0, also over earlier polygons. No name is renamed twice.
        ignored: classes, after renaming, whose pixels become `IGNORED`. Requires `classes`.
        region: class, after renaming, of the areas that are annotated; all pixels outside them become `IGNORED`.
            Requires `classes`.
    """

    file: Path
    x: float
    y: float
    width: int
    height: int
    downsample: float = 1.0
    classes: tuple[str, ...] = ()
    offset: tuple[float, float] = (0.0, 0.0)
    renamed: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    region: str = ""

    def draw(self) -> NDArray[np.uint8]:
        """uint8 [height, width].

        Raises:
            ValueError: the file is not GeoJSON, has objects and no polygon, or a polygon of a class that is not among
                `classes`; the rectangle is larger than `MAX_PIXELS`; so many polygons overlap that drawing them takes
                minutes.
        """
        check_pixels(self.width, self.height)
        found = read_polygons(self.file)
        inside = self._inside(found)
        names = [self.class_of(found.names[number]) for number in inside.tolist()]
        of_region = np.array([bool(self.region) and name == self.region for name in names], bool)
        shown = [name for name in names if not self.region or name != self.region]
        values = np.array([self._value(name) for name in shown], np.uint8)
        pixels = self._drawn(found, inside[~of_region], values)
        if self.region:
            annotated = self._drawn(found, inside[of_region], np.ones(of_region.sum(), np.uint8))
            pixels[annotated == 0] = IGNORED
        return pixels

    def is_annotated(self) -> bool:
        """Whether a region of annotation has a pixel in the rectangle; without `region`, True.

        Raises:
            ValueError: the file is not GeoJSON.
        """
        if not self.region:
            return True
        found = read_polygons(self.file)
        inside = self._inside(found).tolist()
        regions = np.array([number for number in inside if self.class_of(found.names[number]) == self.region], np.int64)
        return bool(self._drawn(found, regions, np.ones(len(regions), np.uint8)).any())

    def drawn_as(self, name: str) -> str:
        """How polygons of a class in the file are drawn, in words: the pixel value, "ignored" or "region"."""
        own = self.class_of(name)
        if self.region and own == self.region:
            return "region"
        try:
            return "ignored" if own in self.ignored else str(self._value(own))
        except ValueError:
            return "not in data.polygon_classes"

    def class_of(self, name: str) -> str:
        """The class that a polygon is drawn by, from its name in the file."""
        return dict(self.renamed).get(name, name)

    def _inside(self, found: PolygonSet) -> NDArray[np.int64]:
        """The numbers of the polygons whose boxes reach into the rectangle."""
        left, top, right, bottom = self._corners()
        boxes = found.boxes
        inside = (boxes[:, 0] < right) & (boxes[:, 1] < bottom) & (boxes[:, 2] > left) & (boxes[:, 3] > top)
        return np.flatnonzero(inside)

    def _corners(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in the file's coordinates."""
        left, top = self.x - self.offset[0], self.y - self.offset[1]
        return left, top, left + self.width * self.downsample, top + self.height * self.downsample

    def _drawn(self, found: PolygonSet, chosen: NDArray[np.int64], values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 [height, width]: the polygons numbered in `chosen`, with their values."""
        from ...kernels.polygons_numba import draw_polygons

        left, top, right, bottom = self._corners()
        boxes = found.boxes
        low, high = np.maximum(boxes[chosen, :2], (left, top)), np.minimum(boxes[chosen, 2:], (right, bottom))
        drawn = float((np.ceil((high - low) / self.downsample) + 1).prod(1).sum())  # pixels
        if drawn > _MAX_DRAWN:
            raise ValueError(
                f"{self.file}: {len(chosen):,} polygons cover {self.width}x{self.height} pixels "
                f"{drawn / (self.width * self.height):,.0f} times; remove those that lie below others"
            )
        pixels = np.zeros((self.height, self.width), np.uint8)
        draw_polygons(
            *(found.points, found.rings, found.polygons, boxes, chosen, values),
            *(float(left), float(top), float(self.downsample), pixels),
        )
        return pixels

    def _value(self, name: str) -> int:
        if name in self.ignored:
            return IGNORED
        if name in self.classes:
            return self.classes.index(name)
        if name == BACKGROUND:
            return 0
        if not self.classes:
            return 255
        raise ValueError(
            f"{self.file} has a polygon of class {name or '(none)'!r}; `classes` knows {', '.join(self.classes)}. Add "
            "it there (data.polygon_classes), give it another name (data.polygon_rename), or leave its area out of "
            "the loss (data.polygon_ignore)"
        )

    def __post_init__(self) -> None:
        most = _MAX_CLASSES - bool(self.ignored or self.region)
        if len(self.classes) > most:
            raise ValueError(f"`classes` may name {most} classes at most; got {len(self.classes)}")
        if (self.ignored or self.region) and not self.classes:
            raise ValueError(
                "`ignored` and `region` need `classes`: a mask without classes has no value for ignored pixels"
            )


def polygon_classes(file: Path) -> dict[str, int]:
    """Class name -> number of polygons in `file`; "" counts those without a class. ValueError as `Polygons.draw`."""
    return dict(Counter(read_polygons(file).names))
