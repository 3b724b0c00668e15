"""Stitch overlapping tiles into a map of their mean, one band of rows at a time.

Tiles come row by row. Rows that no later tile can reach are returned and dropped, so memory holds one row of tiles,
[C, tile height, map width], for any map height.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_PIECE = 2**20  # means that are computed at once: their decision takes several times their memory


class Rows(NamedTuple):
    """Finished rows of a map.

    Attributes:
        number: of rows.
        left: the first column of `means`; there are no tiles to either side.
        means: float32 [C, number, w].
        seen: bool [number, w], whether any tile covers the pixel; the means are 0 elsewhere.
    """

    number: int
    left: int
    means: Tensor
    seen: Tensor


class Band:
    """The rows of a map that can still receive tiles.

    Args:
        channels: C.
        side: of the tiles, pixels.
        width: of the map.
        height: likewise.
        device: of the tiles.
    """

    def __init__(self, channels: int, side: int, width: int, height: int, device: torch.device):
        self._side, self._width, self._height = side, width, height
        self._sums = torch.zeros(channels, side, width, device=device)
        self._counts = torch.zeros(side, width, dtype=torch.int16, device=device)
        self._top = 0
        self._left, self._right = width, 0  # columns covered by tiles

    def until(self, row: int) -> Iterator[Rows]:
        """The rows above `row`, which must be the top of all later tiles; `height` ends the map. Take all of them
        before the next tile is added."""
        row = min(row, self._height)
        while self._top < row:
            number = min(row - self._top, self._side)
            left, right = min(self._left, self._right), self._right
            at_once = max(1, _PIECE // max(1, len(self._sums) * (right - left)))
            for first in range(0, number, at_once):
                some = slice(first, min(first + at_once, number))
                sums, counts = self._sums[:, some, left:right], self._counts[some, left:right]
                yield Rows(some.stop - first, left, sums / counts.clamp(min=1), counts > 0)
            self._shift(number, left, right)
            self._top += number

    def add(self, x: int, tile: Tensor) -> None:
        """Add a tile [C, side, side] at column x of the first row not yet returned; it may extend beyond the map."""
        left, right = max(x, 0), min(x + self._side, self._width)
        if left < right:
            self._sums[:, :, left:right] += tile[:, :, left - x : right - x]
            self._counts[:, left:right] += 1
            self._left, self._right = min(self._left, left), max(self._right, right)

    def _shift(self, number: int, left: int, right: int) -> None:
        for kept in (self._sums, self._counts):
            part = kept[..., left:right]
            part[..., : self._side - number, :] = part[..., number:, :].clone()
            part[..., self._side - number :, :] = 0
        if number == self._side:
            self._left, self._right = self._width, 0
