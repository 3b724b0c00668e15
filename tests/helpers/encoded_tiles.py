"""A slide that is an array in memory, cut into encoded tiles: stands in for what `data.open_slide` gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from fastmtl.data import EncodedTile, Region
from fastmtl.data.loading.encoded_images import EncodedImages


@dataclass
class ArraySlide:
    """`pixels` [H, W, 3] in tiles of `tile` pixels; every other tile comes decoded; `missing` and `damaged` ones don't.

    Level 1 is level 0 with every second pixel.
    """

    pixels: np.ndarray
    tile: int = 32
    missing: frozenset[tuple[int, int]] = frozenset()
    damaged: frozenset[tuple[int, int]] = frozenset()
    spoil: Callable[[bytes], bytes] | None = None  # makes DALI's bytes of a damaged tile; None: reading raises
    reads: list[tuple[int, int]] = field(default_factory=list)

    def encoded_tiles(self, region: Region) -> list[EncodedTile]:
        step = 2**region.level
        whole = self.pixels[::step, ::step]
        left, top, found = region.x // step, region.y // step, []
        for row in range(max(top, 0) // self.tile, (min(top + region.height, whole.shape[0]) - 1) // self.tile + 1):
            for column in range(
                max(left, 0) // self.tile, (min(left + region.width, whole.shape[1]) - 1) // self.tile + 1
            ):
                if (row, column) not in self.missing:
                    found.append(self._encoded_tile(whole, row, column, left, top))
        return found

    def _encoded_tile(self, whole: np.ndarray, row: int, column: int, left: int, top: int) -> EncodedTile:
        self.reads.append((row, column))
        y, x = row * self.tile, column * self.tile
        part = whole[y : y + self.tile, x : x + self.tile]
        height, width = part.shape[:2]
        if (row + column) % 2:
            return EncodedTile(x - left, y - top, width, height, pixels=np.ascontiguousarray(part))
        padded = np.pad(part, [(0, self.tile - height), (0, self.tile - width), (0, 0)])  # as TIFF pads its edge tiles
        data = encoded(padded)
        if (row, column) in self.damaged:
            if self.spoil is None:
                raise ValueError(f"tile {row}, {column} is damaged")
            data = np.frombuffer(self.spoil(data.tobytes()), np.uint8)
        return EncodedTile(x - left, y - top, width, height, data=data)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> np.ndarray:
    buffer = BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, kind, **options)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def pictures_of(slides: dict[str, ArraySlide]) -> EncodedImages:
    """Opens the slides by their file's name."""
    return EncodedImages(lambda path: slides[path.name])


def region(slide: str, x: int, y: int, size: int, level: int = 0) -> Region:
    return Region(Path(slide), x, y, size, size, level)


@dataclass(frozen=True)
class Painted:
    """A `Drawn` of the given pixels."""

    pixels: bytes
    shape: tuple[int, ...]

    @classmethod
    def of(cls, pixels: np.ndarray) -> Painted:
        return cls(pixels.tobytes(), pixels.shape)

    def draw(self) -> np.ndarray:
        return np.frombuffer(self.pixels, np.uint8).reshape(self.shape)
