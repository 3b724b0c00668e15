"""A cache of tiles that are much larger than the regions read from them: one decode serves all regions of a tile."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from threading import Lock
from typing import NamedTuple

from .codecs import Pixels
from .raster import Raster
from .wanted_tiles import Wanted

_Key = tuple[Raster, int]


class TileUse(NamedTuple):
    """Counts since the process started.

    Attributes:
        reused: tiles of regions that were in the cache, or that another thread was decoding.
        decoded: tiles that were decoded for it.
    """

    reused: int
    decoded: int


class DecodedTiles:
    """Recently decoded tiles of all slides. Thread-safe; two threads that need the same tile decode it once.

    Args:
        most_bytes: of pixels; a single larger tile is kept.
    """

    def __init__(self, most_bytes: int = 2**28) -> None:
        self._most_bytes = most_bytes
        self._tiles: OrderedDict[_Key, Future[Pixels]] = OrderedDict()
        self._lock = Lock()
        self._bytes = 0
        self.use = TileUse(0, 0)

    @property
    def most_bytes(self) -> int:
        """Of pixels that are kept; setting it forgets what is too much."""
        return self._most_bytes

    @most_bytes.setter
    def most_bytes(self, value: int) -> None:
        with self._lock:
            self._most_bytes = value
            self._forget()

    def read(
        self,
        raster: Raster,
        wanted: Sequence[Wanted],
        decode: Callable[[list[Wanted]], Iterable[tuple[Wanted, Pixels]]],
    ) -> Iterator[tuple[Wanted, Pixels]]:
        """The pixels of each wanted tile; `decode` is called for those that are neither kept nor being decoded.

        Raises:
            Exception: what `decode` raised.
        """
        mine, futures = self._claim(raster, wanted)
        try:
            for item, pixels in decode(mine) if mine else ():
                self._keep((raster, item.tile), futures[item.tile], pixels)
        except BaseException as error:
            self._give_up(raster, [item for item in mine if not futures[item.tile].done()], error)
            raise
        for item in wanted:
            if futures[item.tile].exception() is None:
                yield item, futures[item.tile].result()
            else:  # another thread failed, perhaps at a tile that is not wanted here: how threads meet decides nothing
                yield from self.read(raster, [item], decode)

    def _claim(self, raster: Raster, wanted: Sequence[Wanted]) -> tuple[list[Wanted], dict[int, Future[Pixels]]]:
        """The tiles that this thread decodes, and where the pixels of all of them will be."""
        mine, futures = [], {}
        with self._lock:
            for item in wanted:
                key = raster, item.tile
                if key in self._tiles:
                    self._tiles.move_to_end(key)
                else:
                    self._tiles[key] = Future()
                    mine.append(item)
                futures[item.tile] = self._tiles[key]
            self.use = TileUse(self.use.reused + len(wanted) - len(mine), self.use.decoded + len(mine))
        return mine, futures

    def _keep(self, key: _Key, future: Future[Pixels], pixels: Pixels) -> None:
        with self._lock:
            future.set_result(pixels)
            self._bytes += pixels.nbytes
            self._forget(but=key)

    def _forget(self, but: _Key | None = None) -> None:
        """Forget the tiles that were used longest ago, as far as there are too many bytes; with the lock."""
        for key in [key for key, kept in self._tiles.items() if kept.done() and key != but]:
            if self._bytes <= self._most_bytes:
                break
            self._bytes -= self._tiles.pop(key).result().nbytes

    def _give_up(self, raster: Raster, items: Sequence[Wanted], error: BaseException) -> None:
        with self._lock:
            for item in items:
                self._tiles.pop((raster, item.tile)).set_exception(error)


decoded_tiles = DecodedTiles()
"""Of this process, for all slides together."""
