"""A cache of large tiles, decoded: the next region of a slide likely needs the same tile."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from .codecs import Pixels
from .raster import Raster

_KEPT_BYTES = 2**28  # of such pixels per process, for all open slides together; a single larger tile is kept


class DecodedTiles:
    """Recently decoded tiles of all slides, by raster and number."""

    def __init__(self) -> None:
        self._tiles: OrderedDict[tuple[Raster, int], Pixels] = OrderedDict()
        self._lock = Lock()

    def get(self, tile: tuple[Raster, int]) -> Pixels | None:
        with self._lock:
            if tile in self._tiles:
                self._tiles.move_to_end(tile)
            return self._tiles.get(tile)

    def put(self, tile: tuple[Raster, int], pixels: Pixels) -> None:
        with self._lock:
            self._tiles[tile] = pixels
            while len(self._tiles) > 1 and sum(kept.nbytes for kept in self._tiles.values()) > _KEPT_BYTES:
                self._tiles.popitem(last=False)
