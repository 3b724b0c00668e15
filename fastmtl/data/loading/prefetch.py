"""What is fed to DALI: batches whose bytes were read ahead, by threads, outside the interpreter lock."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import reason_of
from ..dataset import ImageSource, Tile
from ..images.pictures import file_of
from .augment import Augmentation, Parameters
from .encoded import EncodedTile, Mosaic, Pictures, Whole
from .quarantine import Faults, substitutes
from .targets import NO_PARTNER, Columns

_MAX_SUBSTITUTES = 64
# A 1 x 1 black image (PGM): DALI wants a batch to hold something, and all of this one's pictures were drawn.
_NOTHING = np.frombuffer(b"P5\n1 1\n255\n\x00", np.uint8)


class Plan(NamedTuple):
    """One batch to come: int64 [B] tile numbers, how often each came before in the epoch, and each one's partner's row,
    -1 for none."""

    samples: NDArray[np.int64]
    repeats: NDArray[np.int64]
    partners: NDArray[np.int64]


class EncodedBatch(NamedTuple):
    """A batch as it was read: what stands in for damaged tiles is in, what is left out is out.

    Attributes:
        tiles: int64 [B], tile numbers.
        partners: int64 [B], rows of the batch.
        drawn: what is to be done to each.
        canvases: for the image and then each map, B canvases; None where the tile has no such map.
        numbers: likewise, for each piece of a canvas its place in `encoded`, -1 for pixels.
        encoded: what DALI decodes.
        is_grey: bool each, whether to one channel.
    """

    tiles: NDArray[np.int64]
    partners: NDArray[np.int64]
    drawn: Parameters
    canvases: list[list[Mosaic | None]]
    numbers: list[list[list[int]]]
    encoded: list[NDArray[np.uint8]]
    is_grey: list[bool]


class Feed:
    """What DALI calls for its next batch.

    Args:
        pictures: finds the bytes.
        columns: which maps are read beside the images.
        augmentation: what is drawn for each sample.
        seed: of those draws.
        faults: where damage is reported.
        replace: another tile stands in for a damaged one; otherwise it is left out.
        num_threads: threads that read.
        ahead: batches read ahead of DALI.
    """

    def __init__(
        self,
        pictures: Pictures,
        columns: Columns,
        augmentation: Augmentation,
        *,
        seed: int,
        faults: Faults,
        replace: bool,
        num_threads: int,
        ahead: int,
    ):
        self._pictures, self._columns, self._augmentation, self._seed = pictures, columns, augmentation, seed
        self._faults, self._replace, self._num_threads, self._ahead = faults, replace, num_threads, ahead
        self._pool: ThreadPoolExecutor | None = None  # made by the first batch, and again by one after `close`
        self._reading: deque[list[Future[list[tuple[int, list[Mosaic | None]] | None]]]] = deque()
        self._plans: Sequence[Plan] = ()
        self._tiles: Sequence[Tile] = ()
        self._epoch = self._num_fed = self._num_started = 0
        self.fed: deque[EncodedBatch] = deque()
        """Batches that DALI has and that nobody took yet."""

    def start(self, epoch: int, tiles: Sequence[Tile], plans: Sequence[Plan]) -> None:
        """Feed these batches next."""
        self._drop()
        self._epoch, self._tiles, self._plans = epoch, tiles, plans
        self._num_fed = self._num_started = 0

    def __call__(self, _iteration: int) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.bool_]]]:
        if self._num_fed >= len(self._plans):
            raise StopIteration
        while self._num_started < min(len(self._plans), self._num_fed + 1 + self._ahead):
            self._reading.append(self._begin(self._plans[self._num_started]))
            self._num_started += 1
        plan = self._plans[self._num_fed]
        ready = self._gather(plan, [sample for part in self._reading.popleft() for sample in part.result()])
        self._num_fed += 1
        self.fed.append(ready)
        return ready.encoded or [_NOTHING], [np.array(grey) for grey in ready.is_grey or [True]]

    def close(self, *, wait: bool = True) -> None:
        """End the threads, after what each is reading; batches that were not taken are dropped."""
        self._drop()
        if self._pool is not None:
            self._pool.shutdown(wait, cancel_futures=True)
            self._pool = None

    def _drop(self) -> None:
        for future in itertools.chain(*self._reading):
            future.cancel()
        self._reading.clear()
        self.fed.clear()

    def pictures_of(self, tile: int) -> list[ImageSource | None]:
        """The image and the maps of a tile of this epoch."""
        return [self._tiles[tile].image, *(column.of(self._tiles[tile]) for column in self._columns.maps)]

    def report(self, tile: int, picture: int, reason: str) -> None:
        """Set a tile aside; TileReadError when that is one too many."""
        self._faults.report(self._epoch, self._tiles[tile], self.pictures_of(tile)[picture], reason)

    def _begin(self, plan: Plan) -> list[Future[list[tuple[int, list[Mosaic | None]] | None]]]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="fastmtl-read")
        bounds = np.unique(np.linspace(0, len(plan.samples), self._num_threads + 1).astype(int)).tolist()
        return [self._pool.submit(self._read, plan, start, stop) for start, stop in itertools.pairwise(bounds)]

    def _read(self, plan: Plan, start: int, stop: int) -> list[tuple[int, list[Mosaic | None]] | None]:
        rows = zip(plan.samples[start:stop].tolist(), plan.repeats[start:stop].tolist(), strict=True)
        return [self._sample(tile, repeat) for tile, repeat in rows]

    def _sample(self, wanted: int, repeat: int) -> tuple[int, list[Mosaic | None]] | None:
        """The tile number and its canvases; None for one left out."""
        tile = wanted
        for attempt in range(_MAX_SUBSTITUTES):
            if not self._faults.is_known(self._tiles[tile]):
                canvases = self._try(tile)
                if canvases is not None:
                    return tile, canvases
            if not self._replace:
                return None
            tile = substitutes(wanted, self._tiles, seed=self._seed, epoch=self._epoch, repeat=repeat, attempt=attempt)
        raise RuntimeError(f"{_MAX_SUBSTITUTES} tiles drawn in the place of {self._tiles[wanted].id} are damaged too")

    def _try(self, tile: int) -> list[Mosaic | None] | None:
        canvases: list[Mosaic | None] = []
        decoded = [3, *(1 if column.is_grey else 3 for column in self._columns.maps)]
        wanted = [3, *(1 if column.is_grey else None for column in self._columns.maps)]
        for number, picture in enumerate(self.pictures_of(tile)):
            try:
                canvas = None if picture is None else self._pictures.read(picture, decoded[number])
                canvases.append(canvas and _with_channels(canvas, wanted[number]))
            except Exception as error:  # files, slides and drawings fail in many ways, and each means: not this tile
                reason = reason_of(error)
                self.report(tile, number, reason.removeprefix(f"{file_of(picture)}: ") if picture else reason)
                return None
        return canvases

    def _gather(self, plan: Plan, samples: list[tuple[int, list[Mosaic | None]] | None]) -> EncodedBatch:
        kept = np.array([row for row, sample in enumerate(samples) if sample is not None], np.int64)
        read = [sample for sample in samples if sample is not None]
        tiles = np.array([tile for tile, _ in read], np.int64)
        # Of two that belong together neither has a partner when another tile stands in for one of them.
        whole = np.zeros(len(samples), bool)
        whole[kept] = tiles == plan.samples[kept]
        place = np.full(len(samples) + 1, NO_PARTNER)
        place[kept] = np.arange(len(kept))
        partners = np.where(whole & whole[plan.partners], place[plan.partners], NO_PARTNER)
        partners = np.where(plan.partners == NO_PARTNER, NO_PARTNER, partners)[kept]
        canvases = [list(column) for column in zip(*(pictures for _, pictures in read), strict=True)]
        canvases = canvases or [[] for _ in range(1 + len(self._columns.maps))]
        encoded, is_grey, numbers = [], [], []
        known: dict[tuple[bool, bytes | int], int] = {}
        for column, row in enumerate(canvases):
            grey = column > 0 and self._columns.maps[column - 1].is_grey
            numbers.append([])
            for canvas in row:
                places = []
                for piece in canvas.pieces if canvas else ():
                    if piece.data is None:
                        places.append(-1)
                        continue
                    # Neighbouring regions share a slide's tiles: to find that out takes a hundredth of decoding one.
                    same = (grey, piece.data.tobytes()) if canvas and canvas.size else (grey, len(encoded))
                    places.append(known.setdefault(same, len(encoded)))
                    if places[-1] == len(encoded):
                        encoded.append(piece.data)
                        is_grey.append(grey)
                numbers[-1].append(places)
        drawn = self._augmentation.sample(self._seed, self._epoch, plan.samples[kept], plan.repeats[kept])
        return EncodedBatch(tiles, partners, drawn, canvases, numbers, encoded, is_grey)


def _with_channels(canvas: Mosaic, wanted: int | None) -> Mosaic:
    """Pieces that came as pixels, with as many channels as decoded ones have: grey is repeated, of colours the first is
    taken, all being equal in a grey map. None leaves them as they are."""
    if wanted is None or all(piece.pixels is None or piece.pixels.shape[2] == wanted for piece in canvas.pieces):
        return canvas
    return Mosaic(
        [piece if piece.pixels is None else _converted(piece, wanted) for piece in canvas.pieces], canvas.size
    )


def _converted(piece: EncodedTile, wanted: int) -> EncodedTile:
    pixels = piece.pixels
    if pixels is None or pixels.shape[2] not in (1, 3):
        raise ValueError(f"a picture must have 1 or 3 channels; got {0 if pixels is None else pixels.shape[2]}")
    pixels = np.repeat(pixels[:, :, :1], 3, 2) if wanted == 3 else np.ascontiguousarray(pixels[:, :, :1])
    return Whole(None, pixels, piece.x, piece.y, piece.width, piece.height)
