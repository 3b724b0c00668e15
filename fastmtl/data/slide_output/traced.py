"""The polygons of a map while they are traced: on disk, and of those only as many as a file may hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_POINTS = 5_000_000
"""Points of the polygons of a file: about 150 MB, more than viewers can show."""

_MAX_CORNERS = 2**20  # of unfinished polygons, in memory


@dataclass(frozen=True)
class OutlineOptions:
    """What outlines leave out; the units are pixels of the map.

    Attributes:
        min_area: of a polygon or a hole; smaller polygons are left out, and smaller holes filled.
        tolerance: how far a simplified outline may be from the pixels' edges; 0 does not simplify.
        max_points: of the polygons of a file, before they are simplified. If they have more, `min_area` is raised, to
            a power of two.
    """

    min_area: float = 0.0
    tolerance: float = 0.0
    max_points: int = MAX_POINTS


class _Polygons(NamedTuple):
    """Polygons as arrays: see `kernels.outlines_numba.State`."""

    points: NDArray[np.int32]
    rings: NDArray[np.int64]
    polygons: NDArray[np.int64]


class TracedPolygons:
    """The polygons of one map or several.

    Args:
        file: an open temporary file.
        options: what is left out.

    Attributes:
        min_area: of the polygons and holes that are kept.
    """

    def __init__(self, file: IO[bytes], options: OutlineOptions):
        self.min_area = float(options.min_area)
        self._file, self._max_points = file, options.max_points
        self._names: list[Mapping[int, str]] = []  # of each part in the file
        self._points = np.zeros(64)  # by the logarithm of the area of their polygon or hole

    def trace(self, rows: Iterable[NDArray[np.uint8]], names: Mapping[int, str]) -> None:
        """Add the polygons of a map.

        Args:
            rows: the map from above, uint8 [h, width].
            names: value -> class; other values have no polygons.
        """
        from ...kernels import outlines_numba as kernel

        state: Any = None
        kept = np.array([value if value in names else 0 for value in range(256)], np.uint8)
        for some in rows:
            state = state or kernel.new_state(some.shape[1], _MAX_CORNERS)
            some = kept[some]
            while (added := kernel.add_rows(state, some, 0, self.min_area)) < len(some):
                some = some[added:]
                self._take(state, kernel, names)
        while state is not None and kernel.add_rows(state, np.zeros((0, 1), np.uint8), 0, self.min_area) < 0:
            self._take(state, kernel, names)
        if state is not None:
            self._take(state, kernel, names)

    def read(self) -> Iterator[tuple[str, list[NDArray[np.int32]]]]:
        """The class of each polygon and its rings, points (x, y) [n, 2], the outer one first; none is closed."""
        self._file.seek(0)
        for names in self._names:
            found, begin = _Polygons(*(np.load(self._file, allow_pickle=False) for _ in _Polygons._fields)), 0
            starts = np.concatenate([[0], found.rings[:, 0]])
            for end, value, size in found.polygons:
                if size >= self.min_area:
                    kept = [begin, *(ring for ring in range(begin + 1, end) if found.rings[ring, 1] >= self.min_area)]
                    yield names[int(value)], [found.points[starts[ring] : starts[ring + 1]] for ring in kept]
                begin = end

    def _take(self, state: Any, kernel: Any, names: Mapping[int, str]) -> None:
        counts, of_counts = state.counts, (kernel.NUM_POINTS, kernel.NUM_RINGS, kernel.NUM_POLYGONS)
        arrays = (state.points, state.rings, state.polygons)
        found = _Polygons(*(array[: counts[number]] for array, number in zip(arrays, of_counts, strict=True)))
        kernel.clear(state)
        if not len(found.polygons):
            return
        for array in found:
            np.save(self._file, array)
        self._names.append(names)
        self._count(found)
        while self._points[self._smallest() :].sum() > self._max_points:
            self.min_area = 2.0 ** (self._smallest() + 1)

    def _smallest(self) -> int:
        return _logarithm(np.array(self.min_area)).item()

    def _count(self, found: _Polygons) -> None:
        lengths = np.diff(found.rings[:, 0], prepend=0)
        ends, pixels = found.polygons[:, 0], found.polygons[:, 2]
        # A hole goes with its polygon.
        areas = np.minimum(found.rings[:, 1], np.repeat(pixels, np.diff(ends, prepend=0)))
        areas[np.concatenate([[0], ends[:-1]])] = pixels
        self._points += np.bincount(_logarithm(areas), lengths, 64)


def _logarithm(areas: NDArray[Any]) -> NDArray[np.int64]:
    """floor(log2); 0 below 1."""
    return np.maximum(np.frexp(areas.astype(np.float64))[1].astype(np.int64) - 1, 0)
