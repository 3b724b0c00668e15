"""A small cache of tiles as stored: regions beside each other share most of them, which are read and checked once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from .raster import Raster
from .wanted_tiles import Wanted

_Stream = NDArray[np.uint8]


class RecentTiles:
    """The encoded tiles of all slides that were used last. Thread-safe; two threads may both read the same tile.

    Args:
        most_bytes: of encoded tiles; a single larger one is not kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._streams: OrderedDict[tuple[Raster, int], _Stream] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def read(
        self,
        raster: Raster,
        wanted: Sequence[Wanted],
        read: Callable[[list[Wanted]], Iterable[tuple[Wanted, _Stream]]],
    ) -> list[tuple[Wanted, _Stream]]:
        """The stream of each wanted tile, never changed afterwards; `read` is called for those that are not kept.

        Raises:
            Exception: what `read` raised; the tiles that it returned before are kept.
        """
        with self._lock:
            keys = [(raster, item.tile) for item in wanted]
            streams = {key[1]: self._streams[key] for key in keys if key in self._streams}
            for tile in streams:
                self._streams.move_to_end((raster, tile))
        missing = [item for item in wanted if item.tile not in streams]
        for item, stream in read(missing) if missing else ():
            self._keep((raster, item.tile), stream)
            streams[item.tile] = stream
        return [(item, streams[item.tile]) for item in wanted]  # in this order whatever was kept

    def _keep(self, key: tuple[Raster, int], stream: _Stream) -> None:
        if stream.nbytes > self._most_bytes:
            return
        with self._lock:
            before = self._streams.pop(key, None)
            self._streams[key] = stream
            self._bytes += stream.nbytes - (0 if before is None else before.nbytes)
            while self._bytes > self._most_bytes:
                self._bytes -= self._streams.popitem(last=False)[1].nbytes


recent_tiles = RecentTiles(2**24)
"""Of this process, for all slides together."""
