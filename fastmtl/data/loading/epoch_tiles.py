"""The tiles of each epoch and the values of their columns: always the same, or those of a stream."""

from __future__ import annotations

from collections.abc import Sequence

from ..dataset import Tile
from .patches import TileStream
from .targets import Columns, ColumnValues


class EpochTiles:
    """The tiles of each epoch; columns that do not change are read once."""

    def __init__(self, tiles: Sequence[Tile] | TileStream, columns: Columns) -> None:
        self._stream = tiles if isinstance(tiles, TileStream) else None
        self._tiles: Sequence[Tile] = () if isinstance(tiles, TileStream) else tuple(tiles)
        self._columns = columns
        self._values: ColumnValues | None = None

    @property
    def first(self) -> Sequence[Tile]:
        """The tiles of epoch 0."""
        return self._tiles if self._stream is None else self._stream.tiles_of(0)

    def read(self, epoch: int) -> tuple[Sequence[Tile], ColumnValues]:
        """The tiles of an epoch and their columns."""
        if self._stream is not None:
            tiles = tuple(self._stream.tiles_of(epoch))
            return tiles, self._columns.read(tiles)
        if self._values is None:
            self._values = self._columns.read(self._tiles)
        return self._tiles, self._values
