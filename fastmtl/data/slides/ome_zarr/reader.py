"""Reads pixels of an OME-Zarr slide with the zarr library; arrays are opened on first use."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ....utils.optional_imports import require
from ...dataset import BACKGROUND
from ..codecs import Pixels
from ..errors import DamagedPieceError, SlideError
from ..raster import Level
from ..remote.path import RemotePath
from .metadata import METADATA, Array, ZarrImage, read_image

_MAX_CHUNKS = 2**24


class OmeZarrReader:
    """Thread-safe. The same methods as `OpenSlideReader`."""

    def __init__(self, path: Path, levels: tuple[Level, ...]):
        self._path, self._levels = path, levels
        self._image: ZarrImage | None = None
        self._arrays: dict[int, Any] = {}
        self._opening = Lock()

    def close(self) -> None:
        with self._opening:
            self._image = None
            self._arrays.clear()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """RGB uint8 [height, width, 3]; x, y in level-0 pixels; outside the slide is `BACKGROUND`.

        Raises:
            DamagedPieceError: a chunk cannot be read.
        """
        full = self._levels[level]
        left, top = round(x / full.downsample), round(y / full.downsample)
        first, last = max(left, 0), min(left + width, full.width)
        upper, lower = max(top, 0), min(top + height, full.height)
        pixels = np.full((height, width, 3), BACKGROUND, np.uint8)
        if last > first and lower > upper:
            try:
                part = self._part(level, slice(upper, lower), slice(first, last))
            except (SlideError, ImportError):
                raise
            except Exception as error:  # each codec and store has its own types
                reason = f"its chunks cannot be read: {type(error).__name__}: {error}"[:200]
                raise DamagedPieceError(self._path, (x, y, level), reason) from error
            pixels[upper - top : lower - top, first - left : last - left] = part
        return pixels

    def associated_names(self) -> tuple[str, ...]:
        return ()

    def associated(self, name: str) -> Pixels:
        raise SlideError(self._path, f"has no {name} picture")

    def _part(self, level: int, rows: slice, columns: slice) -> Pixels:
        image, array = self._opened(level)
        wanted = {"y": rows, "x": columns, "c": slice(0, 3)}
        found = np.asarray(array[tuple(wanted.get(axis.name, 0) for axis in image.axes)])
        kept = [axis.name for axis in image.axes if axis.name in wanted]
        return found.transpose([kept.index(name) for name in "yxc"])

    def _opened(self, level: int) -> tuple[ZarrImage, Any]:
        with self._opening:
            image = self._image = self._image or self._read_image()
            if level not in self._arrays:
                self._arrays[level] = open_array(image, image.arrays[level])
            return image, self._arrays[level]

    def _read_image(self) -> ZarrImage:
        """The image as it is now, which must be the one that was scanned."""
        try:
            image = read_image(self._path)
        except (ValueError, OSError) as error:
            raise SlideError(self._path, str(error)) from error
        sizes = [(one.shape[image.at("x")], one.shape[image.at("y")]) for one in image.arrays]
        if sizes != [(level.width, level.height) for level in self._levels]:
            raise SlideError(self._path, "changed since it was opened; open it again")
        return image


def open_array(image: ZarrImage, array: Array) -> Any:
    """An array of the zarr library, whose codecs `metadata` has checked."""
    zarr = require("zarr", "opening OME-Zarr slides", "zarr")
    folder = image.group / array.path
    if isinstance(folder, RemotePath):
        from .server_store import ServerStore

        return zarr.open_array(ServerStore(str(folder)), mode="r")
    return zarr.open_array(str(folder), mode="r")


def missing_chunks(image: ZarrImage, array: Array) -> int:
    """How many chunks (or shards) of a local store have no file: the zarr library reads their fill value instead.

    Raises:
        ValueError: it declares more chunks than any slide has.
    """
    if array.num_stored > _MAX_CHUNKS:
        raise ValueError(f"declares {array.num_stored:,} chunks in a level, which no slide has")
    if isinstance(image.group, RemotePath):  # listing may take minutes
        return 0
    names = (name for _, _, names in os.walk(image.group / array.path) for name in names)
    return max(0, array.num_stored - sum(name not in METADATA and not name.startswith(".") for name in names))
