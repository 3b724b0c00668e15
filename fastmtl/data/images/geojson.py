"""Read GeoJSON polygons, as exported by QuPath and other viewers, into arrays of rings and classes."""

from __future__ import annotations

import reprlib
import stat
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...utils.json_toml import parse_json
from ...utils.words import printable
from ..text import read_text

_PASSED_OVER = ("Point", "MultiPoint", "LineString", "MultiLineString")
_FARTHEST = 2.0**31  # level-0 pixels; no slide is so large
_MAX_DEPTH = 50  # of collections inside collections


class PolygonSet(NamedTuple):
    """The polygons of a file, in its order; the parts of a MultiPolygon are separate polygons.

    Attributes:
        points: float64 [P, 2], x and y of all rings' points; a ring's last point joins its first.
        rings: int64 [R + 1]: ring r is points[rings[r] : rings[r + 1]].
        polygons: int64 [N + 1]: polygon n has the rings from polygons[n] to polygons[n + 1], its outline first.
        boxes: float64 [N, 4]: left, top, right and bottom.
        names: N class names; "" for polygons without a class.
        notes: ignored or unusual objects, in words.
    """

    points: NDArray[np.float64]
    rings: NDArray[np.int64]
    polygons: NDArray[np.int64]
    boxes: NDArray[np.float64]
    names: tuple[str, ...]
    notes: tuple[str, ...]


def read_polygons(file: Path) -> PolygonSet:
    """The polygons of a GeoJSON file: a FeatureCollection, a Feature, a geometry or a list of them.

    A feature's class is what QuPath shows: `classification` with a `name`, or `names` joined by ": "; else `class` or
    `label`. Lines, points, nuclei of cells and polygons without area are ignored, with a note.

    Raises:
        ValueError: the file cannot be read, is not GeoJSON or has objects of which none is a polygon; the message names
            it. An empty collection is no error: nothing was drawn.
    """
    try:
        state = file.stat()
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {getattr(error, 'strerror', error)}") from error
    if not stat.S_ISREG(state.st_mode):
        raise ValueError(f"{file} is not a file")
    return _parse(file, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=32)
def _parse(file: Path, _mtime: int, _size: int) -> PolygonSet:
    """Parsed once per process and state of the file: thousands of tiles share a slide's polygons."""
    text = read_text(file)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{file} is not GeoJSON: {error}") from None
    reader = _Reader(file)
    reader.read(content)
    notes = tuple(reader.notes())
    if not reader.names and (notes or not _is_empty_collection(content)):
        raise ValueError("; ".join((f"{file} has no polygon", *notes)))
    notes = notes if reader.names else ("has no polygon at all: the mask is empty",)
    outlines = [reader.rings[first] for first in reader.polygons[:-1]]
    return PolygonSet(
        np.concatenate([np.empty((0, 2)), *reader.rings]),
        np.cumsum([0, *map(len, reader.rings)], dtype=np.int64),
        np.array(reader.polygons, np.int64),
        np.array([[*ring.min(0), *ring.max(0)] for ring in outlines]).reshape(-1, 4),
        tuple(reader.names),
        notes,
    )


def _is_empty_collection(content: object) -> bool:
    """Whether it is a collection without objects, as viewers write it for a slide without annotations."""
    return content == [] or (isinstance(content, dict) and content.get("features") == [])


class _Reader:
    """Collects the polygons of one file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.rings: list[NDArray[np.float64]] = []
        self.polygons = [0]
        self.names: list[str] = []
        self._number = 0
        self._passed: Counter[str] = Counter()
        self._objects: Counter[str] = Counter()
        self._planes: set[tuple[Any, Any]] = set()
        self._nuclei = self._empty = 0

    def read(self, content: object, name: str = "", depth: int = 0) -> None:
        """Collect every polygon of a GeoJSON object or a list of objects, with the class `name`."""
        if depth > _MAX_DEPTH:
            raise ValueError(f"{self._file} is not GeoJSON: it is nested too deeply")
        if isinstance(content, list):
            for entry in content:
                self.read(entry, name, depth + 1)
            return
        item = content if isinstance(content, dict) else {}
        kind = item.get("type")
        if kind == "FeatureCollection":
            self.read(item.get("features", []), name, depth + 1)
        elif kind == "Feature":
            self._feature(item, depth)
        elif kind == "GeometryCollection":
            self.read(item.get("geometries", []), name, depth + 1)
        elif kind in ("Polygon", "MultiPolygon"):
            self._polygon(item, name)
        elif kind in _PASSED_OVER:
            self._passed[kind] += 1
        else:
            if "annotations" in item:
                raise ValueError(f"{self._file} holds annotations of COCO; save GeoJSON, or one mask per image")
            found = _short(content)
            raise ValueError(f"{self._file} is not GeoJSON: expected an object with a GeoJSON `type`; found {found}")

    def notes(self) -> Iterator[str]:
        """Notes on objects that are not drawn, or not drawn as the viewer shows them."""
        if self._passed:
            yield f"ignored: {_counted(self._passed)}; masks are drawn only from polygons"
        if self._nuclei:
            yield f"{self._nuclei} cells have a separate nucleus, which is not drawn"
        if self._empty:
            yield f"{self._empty} polygons have no area"
        if set(self._objects) - {"annotation"}:
            yield f"all kinds of objects are drawn: {_counted(self._objects)}"
        if len(self._planes) > 1:
            yield f"polygons of {len(self._planes)} planes (z, t) are drawn together"

    def _feature(self, feature: dict[str, Any], depth: int) -> None:
        if feature.get("nucleusGeometry") is not None:
            self._nuclei += 1
        geometry, properties = feature.get("geometry"), feature.get("properties")
        if geometry is None:
            self._passed["feature without a geometry"] += 1
            return
        properties = properties if isinstance(properties, dict) else {}
        before = len(self.names)
        self.read(geometry, _class_of(properties), depth + 1)
        kind = properties.get("objectType", feature.get("id"))
        if isinstance(kind, str) and len(self.names) > before:
            if kind.startswith("Path") and kind.endswith("Object"):  # QuPath before 0.4: PathAnnotationObject
                self._objects[kind[len("Path") : -len("Object")].lower()] += 1
            elif "objectType" in properties:
                self._objects[kind] += 1

    def _polygon(self, geometry: dict[str, Any], name: str) -> None:
        self._number += 1
        parts = geometry.get("coordinates")
        parts = [parts] if geometry["type"] == "Polygon" else parts
        plane = geometry.get("plane")
        if isinstance(plane, dict):
            self._planes.add((str(plane.get("z")), str(plane.get("t"))))
        try:
            drawn = [[_ring(ring) for ring in _items(part, "rings")] for part in _items(parts, "polygons")]
        except ValueError as error:
            raise ValueError(f"{self._file}: polygon {self._number} {error}") from error
        for rings in drawn:
            if not rings or not _has_area(rings[0]):
                self._empty += 1
                continue
            self.rings += [ring for ring in rings if len(ring) > 2]
            self.polygons.append(len(self.rings))
            self.names.append(name)


def _ring(positions: Any) -> NDArray[np.float64]:
    """The points [n, 2] of a ring without the closing one. Heights are dropped."""
    _items(positions, "positions")
    try:
        try:
            points = np.array(positions)
        except ValueError:  # some have heights
            points = np.array([position[:2] for position in positions])
    except (ValueError, TypeError, KeyError):
        points = np.array(None)
    if positions and (points.dtype.kind not in "iuf" or points.ndim != 2 or points.shape[1] < 2):
        raise ValueError(f"cannot be read: expected positions [x, y], numbers; found {_short(positions)}")
    if 0 < len(positions) < 3:
        raise ValueError(f"cannot be read: a ring has 3 points or more; found {len(positions)}")
    points = points.reshape(len(positions), -1)[:, :2].astype(np.float64)
    if not np.isfinite(points).all():
        raise ValueError("has a coordinate that is not finite")
    if np.abs(points).max(initial=0) > _FARTHEST:
        raise ValueError(f"has a coordinate of {np.abs(points).max():g}; expected pixels")
    return points[:-1] if len(points) and (points[0] == points[-1]).all() else points


def _items(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"cannot be read: expected a list of {what}; found {_short(value)}")
    return value


def _has_area(points: NDArray[np.float64]) -> bool:
    """Whether the points are not all on one line."""
    if len(points) < 3:
        return False
    away = points - points[0]
    farthest = away[np.argmax((away**2).sum(1))]
    return bool((away[:, 0] * farthest[1] != away[:, 1] * farthest[0]).any())


def _class_of(properties: dict[str, Any]) -> str:
    """The first of a feature's properties that names a class."""
    named = (_name(properties.get(key)) for key in ("classification", "classifications", "class", "label"))
    return next((name for name in named if name), "")


def _name(value: object) -> str:
    """A class as QuPath shows it: {"name": "Tumor"}, {"names": ["Tumor", "Positive"]} is "Tumor: Positive"."""
    if isinstance(value, dict):
        value = value.get("names") or value.get("name")
    return ": ".join(filter(None, map(_text, value if isinstance(value, list) else [value])))


def _text(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None or isinstance(value, list | dict) else str(value).strip()


def _short(value: object) -> str:
    return reprlib.repr(value)[:80]


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {printable(name)}" for name, count in sorted(counts.items()))
