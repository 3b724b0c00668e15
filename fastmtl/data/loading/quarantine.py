"""Unreadable tiles: listed and skipped, up to a fraction at which training stops."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError, reason_of
from ...ops.core.backends import extension
from ..dataset import ImageSource, Problem, Tile
from ..images.pictures import file_of, opened_image
from ..slides.remote.path import slide_path
from .encoded_images import place_of

_STREAM = 0x66617565
_HEADER_BYTES, _PIXELS_PER_BYTE = 1024, 16  # an upper bound for the encoded size of an image of one colour


class TileReadError(UserError, RuntimeError):
    """Tiles could not be read; `problems` lists the damaged files."""

    def __init__(self, message: str, problems: Sequence[Problem]):
        super().__init__(message)
        self.problems = tuple(problems)


class DamagedSampleError(ValueError):
    """Image number `picture` (0: the image, then the maps) of tile number `tile` is damaged."""

    def __init__(self, tile: int, picture: int, reason: str):
        super().__init__(reason)
        self.tile, self.picture, self.reason = tile, picture, reason


class Quarantine:
    """The list of damaged tiles. Its tiles are not read again.

    Args:
        max_damaged: the largest accepted fraction of damaged tiles in an epoch; with 0 the first one is an error.
        num_tiles: tiles of an epoch.
    """

    def __init__(self, max_damaged: float, num_tiles: int):
        if not 0 <= max_damaged < 1:
            raise ValueError(f"`max_damaged` must be at least 0 and below 1; got {max_damaged}")
        self._limit, self._num_tiles = max_damaged, num_tiles
        self._lock = threading.Lock()
        self.entries: list[dict[str, Any]] = []
        self._known: set[str] = set()

    def is_known(self, tile: Tile) -> bool:
        return tile.id in self._known

    def report(self, epoch: int, tile: Tile, picture: ImageSource | None, reason: str) -> None:
        """Add a tile to the list.

        Raises:
            TileReadError: more tiles are damaged than `max_damaged` allows.
        """
        with self._lock:
            if tile.id in self._known:
                return
            self._known.add(tile.id)
            if picture is not None and file_of(picture) == Path():
                picture = tile.image  # a run-length code: the image's file says where, the code itself would fill pages
            self.entries.append({"tile": tile.id, **place_of(picture), "reason": reason, "epoch": epoch})
            found = [entry for entry in self.entries if entry["epoch"] == epoch]
            if len(found) <= self._limit * self._num_tiles:
                return
        problem = Problem(slide_path(place_of(picture)["file"]), reason)
        if not self._limit:
            self._forget(tile)  # it may be repaired before the iteration continues
            raise TileReadError(
                f"tile {tile.id} cannot be read: {problem} (`max_damaged` above 0 sets some aside)", [problem]
            )
        problems = [Problem(slide_path(entry["file"]), entry["reason"]) for entry in found]
        raise TileReadError(
            f"{len(found)} of {self._num_tiles} tiles are damaged in epoch {epoch}, more than `max_damaged` "
            f"{self._limit:.1%} allows: check the disk; the first: {problems[0]}",
            problems,
        )

    def load(self, entries: Sequence[dict[str, Any]]) -> None:
        """Continue the list of an interrupted run."""
        with self._lock:
            self.entries[:] = [dict(entry) for entry in entries]
            self._known = {entry["tile"] for entry in entries}

    def _forget(self, tile: Tile) -> None:
        with self._lock:
            self._known.discard(tile.id)
            self.entries[:] = [entry for entry in self.entries if entry["tile"] != tile.id]


def substitutes(tile: int, tiles: Sequence[Tile], *, seed: int, epoch: int, repeat: int, attempt: int) -> int:
    """The replacement of a damaged tile: drawn from tiles of the same label, identical in every run."""
    label = tiles[tile].label
    alike = [number for number, other in enumerate(tiles) if other.label == label and number != tile] or [tile]
    bits = np.random.Philox(key=[seed, _STREAM], counter=[attempt, repeat, tile, epoch])
    return alike[int(bits.random_raw() % np.uint64(len(alike)))]


def nonsense(data: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> str | None:
    """Why an image that decoded without an error is wrong; None if it looks right.

    Some decoders return a single colour for a codec they do not know. An image of one colour takes few bytes; one that
    takes more is decoded again.
    """
    memory, (height, width, channels) = np.ascontiguousarray(decoded), decoded.shape
    count = height * width
    if count <= 1 or not extension().is_constant(memory.__array_interface__["data"][0], count, channels):
        return None
    if data.size <= _HEADER_BYTES + count // _PIXELS_PER_BYTE:
        return None
    try:
        with opened_image(data.tobytes()) as image:
            extrema = np.reshape(image.getextrema(), (-1, 2))
    except Exception as error:  # any error means that the second decoder does not confirm a single colour
        return f"decoded to one colour; Pillow: {reason_of(error)}"
    return "decoded to one colour, which it does not hold" if (extrema[:, 0] != extrema[:, 1]).any() else None
