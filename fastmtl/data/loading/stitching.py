"""The decoded tiles of a picture as one image in memory, copied only if there are several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...ops.core.backends import extension
from .encoded_images import EncodedTile, Mosaic


class View(NamedTuple):
    """An image in `memory`: `height` lines of `width` pixels, `pitch` bytes apart, the first at `address`."""

    memory: NDArray[np.uint8]
    address: int
    pitch: int
    height: int
    width: int
    channels: int


def address_of(values: NDArray[Any]) -> int:
    """The address of the first element."""
    return values.__array_interface__["data"][0]


def covers(part: EncodedTile, size: tuple[int, int]) -> bool:
    """Whether one tile covers the whole mosaic."""
    return part.x <= 0 and part.y <= 0 and part.x + part.width >= size[0] and part.y + part.height >= size[1]


def stitched(mosaic: Mosaic, found: Sequence[NDArray[np.uint8]], channels: int, outside: int) -> View:
    """The image of a mosaic whose tiles decoded to `found`, each at least of its tile's size.

    Args:
        mosaic: where the tiles are.
        found: uint8 [h, w, C] of each.
        channels: of an image without tiles; otherwise it has those of the first tile.
        outside: the level where no tile is.

    Returns:
        A view of the tile that covers the whole mosaic, or of new memory with all of them, later ones over earlier.

    Raises:
        ValueError: a tile is neither grey nor has the channels of the first one.
    """
    if mosaic.size is None:
        return _of(found[0], 0, 0, found[0].shape[1], found[0].shape[0])
    width, height = mosaic.size
    for part, pixels in zip(mosaic.tiles, found, strict=True):
        if covers(part, mosaic.size):
            return _of(pixels, -part.x, -part.y, width, height)
    channels = found[0].shape[2] if found else channels
    # The kernel takes lines of pixels of equal channels.
    alive = [_lines(pixels, channels) for pixels in found]
    tiles = np.array(
        [
            (address_of(pixels), pixels.shape[1] * channels, part.x, part.y, part.width, part.height)
            for part, pixels in zip(mosaic.tiles, alive, strict=True)
        ],
        np.int64,
    )
    whole = np.empty((height, width, channels), np.uint8)
    extension().stitch_tiles(address_of(tiles), len(alive), channels, outside, height, width, address_of(whole))
    return _of(whole, 0, 0, width, height)


def _lines(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Contiguous, grey pixels repeated to `channels`; ValueError for other numbers of channels."""
    if pixels.shape[2] != channels:
        pixels = np.broadcast_to(pixels, (*pixels.shape[:2], channels))
    return np.ascontiguousarray(pixels)


def _of(pixels: NDArray[np.uint8], x: int, y: int, width: int, height: int) -> View:
    memory = np.ascontiguousarray(pixels)
    channels = memory.shape[2]
    pitch = memory.shape[1] * channels
    return View(memory, address_of(memory) + y * pitch + x * channels, pitch, height, width, channels)
