"""Write a map over a slide row by row: a tiled, pyramidal, deflate-compressed BigTIFF.

All levels are written together: a row of tiles is compressed as soon as it is complete, and every second row of pixels
is passed to the next level. Memory holds one row of tiles per level, independent of the slide's height.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...utils.optional_imports import require

TILE = 256
"""Side of the file's tiles, pixels."""

_NO_UNIT, _CENTIMETRE = 1, 3
_READ = 2**22  # bytes read at once, where tifffile would take 256 MB


class SlideMap:
    """A TIFF of one 8-bit channel, being written.

    A level has every second pixel of the one before, so that classes stay classes. The description is JSON: "mpp",
    "downsample" (level-0 pixels of the slide per pixel) and what else is given.

    Args:
        path: the file; written by `close`; until then its parts are unnamed files in its folder.
        width: pixels.
        height: likewise.
        mpp: micrometres per pixel, for the resolution tags; None leaves them without a unit.
        description: JSON types.
    """

    def __init__(self, path: Path, width: int, height: int, *, mpp: float | None, description: dict[str, Any]):
        self.path, self._mpp = path, mpp
        self._description = json.dumps({"mpp": mpp, **description})
        self._levels = [Level(*size, path.parent) for size in level_sizes(width, height)]

    def add(self, rows: NDArray[np.uint8]) -> None:
        """Append rows, uint8 [h, width]."""
        for level in self._levels:
            odd = level.num_rows % 2
            level.add(rows)
            rows = rows[odd::2, ::2]

    def close(self) -> None:
        """Write the file.

        Raises:
            ValueError: rows are missing, or there were too many.
        """
        full = self._levels[0]
        if full.num_rows != full.height:
            raise ValueError(f"{self.path} is of {full.height} rows, and {full.num_rows} were added")
        per_centimetre = 1e4 / self._mpp if self._mpp else 1.0
        with require("tifffile", "writing maps of slides").TiffWriter(self.path, bigtiff=True) as file:
            for number, level in enumerate(self._levels):
                scale = full.width / level.width
                file.write(
                    level.tiles(),
                    shape=(level.height, level.width),
                    dtype=np.uint8,
                    tile=(TILE, TILE),
                    photometric="minisblack",
                    compression="adobe_deflate",  # 8; "deflate" is the older number, which fewer programs know
                    subfiletype=int(number > 0),
                    resolution=(per_centimetre / scale, per_centimetre / scale),
                    resolutionunit=_CENTIMETRE if self._mpp else _NO_UNIT,
                    description=None if number else self._description,
                    metadata=None,
                )
        self.discard()

    def discard(self) -> None:
        """Delete the temporary parts."""
        for level in self._levels:
            level.discard()


def read_rows(path: Path) -> Generator[NDArray[np.uint8]]:
    """The rows of a TIFF of one 8-bit channel, uint8 [h, width], as many at a time as its tiles or strips have."""
    with require("tifffile", "reading maps of slides").TiffFile(path) as file:
        page = file.pages[0].aspage()
        rows, top = np.zeros((0, page.imagewidth), np.uint8), -1
        for segment, (*_, y, x, _), shape in page.segments(maxworkers=1, buffersize=_READ):
            if y != top:
                if top >= 0:
                    yield rows
                rows, top = np.zeros((min(shape[1], page.imagelength - y), page.imagewidth), np.uint8), y
            if segment is not None:
                into = rows[:, x : x + shape[2]]
                into[:] = segment[0, : into.shape[0], : into.shape[1], 0]
        yield rows


def level_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """(width, height) of the levels of a pyramid: each half of the one before, down to one tile."""
    sizes = [(width, height)]
    while max(sizes[-1]) > TILE:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


class Level:
    """One resolution: buffered rows, and compressed tiles in an unnamed temporary file."""

    def __init__(self, width: int, height: int, folder: Path):
        self.width, self.height, self.num_rows = width, height, 0
        self._columns = -(-width // TILE)
        self._rows = np.zeros((TILE, self._columns * TILE), np.uint8)
        self._sizes: list[int] = []
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115
        self._blank = zlib.compress(bytes(TILE * TILE))

    def add(self, rows: NDArray[np.uint8]) -> None:
        while len(rows):
            at = self.num_rows % TILE
            some = rows[: TILE - at]
            self._rows[at : at + len(some), : self.width] = some
            self.num_rows += len(some)
            rows = rows[len(some) :]
            if self.num_rows % TILE == 0 or self.num_rows == self.height:
                self._compress()

    def _compress(self) -> None:
        for column in range(self._columns):
            tile = self._rows[:, column * TILE : (column + 1) * TILE]
            data = zlib.compress(tile.tobytes()) if tile.any() else self._blank
            self._file.write(data)
            self._sizes.append(len(data))
        self._rows[:] = 0

    def tiles(self) -> Iterator[bytes]:
        self._file.seek(0)
        for size in self._sizes:
            yield self._file.read(size)

    def discard(self) -> None:
        with suppress(OSError):  # on a full disk closing fails as writing did
            self._file.close()
