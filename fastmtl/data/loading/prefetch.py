"""Read the bytes of batches ahead, in threads and without the GIL."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace as changed
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import reason_of
from ..dataset import ImageSource, Tile
from ..images.pictures import file_of
from .augment import Augmentation, Parameters
from .encoded_images import EncodedImages, EncodedTile, Mosaic
from .quarantine import Quarantine, substitutes
from .targets import NO_PARTNER, Columns

_MAX_SUBSTITUTES = 64
# A 1 x 1 black image (PGM) for a batch without encoded tiles: DALI requires one.
_NOTHING = np.frombuffer(b"P5\n1 1\n255\n\x00", np.uint8)


class Plan(NamedTuple):
    """A rank's part of a batch.

    Attributes:
        samples: int64 [B], tile numbers.
        repeats: int64 [B], earlier occurrences of the tile in the epoch.
        partners: int64 [B], rows of the batch; -1 for none.
        counted: bool [B]; False for copies that give all ranks the same number of samples.
        end: samples of the epoch, on all ranks, up to the end of this batch.
    """

    samples: NDArray[np.int64]
    repeats: NDArray[np.int64]
    partners: NDArray[np.int64]
    counted: NDArray[np.bool_]
    end: int


_Sample = tuple[int, list[Mosaic | None]]  # tile number; the image and the maps


class EncodedBatch(NamedTuple):
    """A batch after reading; damaged tiles are replaced or dropped.

    Attributes:
        tiles: int64 [B], tile numbers.
        partners: int64 [B], rows of the batch.
        drawn: the augmentation of each.
        mosaics: for the image and then each map, B mosaics; None where the tile has no such map.
        numbers: likewise, for each tile of a mosaic its position in `encoded`, -1 where it has pixels.
        encoded: what DALI decodes.
        is_grey: for each, whether to one channel.
    """

    tiles: NDArray[np.int64]
    partners: NDArray[np.int64]
    drawn: Parameters
    mosaics: list[list[Mosaic | None]]
    numbers: list[list[list[int]]]
    encoded: list[NDArray[np.uint8]]
    is_grey: list[bool]


class Prefetcher:
    """Provides the next batch: to DALI, which calls it, or by `next` if nothing is left to decode.

    Args:
        pictures: reads the bytes.
        columns: which maps are read with the images.
        augmentation: drawn for each sample.
        seed: of those draws.
        quarantine: takes damaged tiles.
        replace: replace a damaged tile by another one; otherwise drop it.
        num_threads: reading threads.
        ahead: batches to read ahead.
    """

    def __init__(
        self,
        pictures: EncodedImages,
        columns: Columns,
        augmentation: Augmentation,
        *,
        seed: int,
        quarantine: Quarantine,
        replace: bool,
        num_threads: int,
        ahead: int,
    ):
        self._pictures, self._columns, self._augmentation, self._seed = pictures, columns, augmentation, seed
        self._quarantine, self._replace, self._num_threads, self._ahead = quarantine, replace, num_threads, ahead
        self._pool: ThreadPoolExecutor | None = None  # made by the first batch, and again by one after `close`
        self._reading: deque[list[Future[list[_Sample | None]]]] = deque()
        self._plans: Sequence[Plan] = ()
        self._tiles: Sequence[Tile] = ()
        self._epoch = self._num_fed = self._num_started = 0
        self._held: EncodedBatch | None = None
        self.fed: deque[EncodedBatch] = deque()
        """Batches passed to DALI and not yet taken by the pipeline."""

    def start(self, epoch: int, tiles: Sequence[Tile], plans: Sequence[Plan]) -> None:
        """Start a pass over these batches."""
        self._drop()
        self._epoch, self._tiles, self._plans = epoch, tiles, plans
        self._num_fed = self._num_started = 0

    def next(self) -> EncodedBatch:
        """The next batch; StopIteration after the last."""
        if self._held is not None:
            batch, self._held = self._held, None
            return batch
        if self._num_fed >= len(self._plans):
            raise StopIteration
        while self._num_started < min(len(self._plans), self._num_fed + 1 + self._ahead):
            self._reading.append(self._begin(self._plans[self._num_started]))
            self._num_started += 1
        plan = self._plans[self._num_fed]
        batch = self._gather(plan, [sample for part in self._reading.popleft() for sample in part.result()])
        self._num_fed += 1
        return batch

    def give_back(self, batch: EncodedBatch) -> None:
        """Let `next` return this batch, the last one it returned, once more."""
        self._held = batch

    def __call__(self, _iteration: int) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.bool_]]]:
        batch = self.next()
        self.fed.append(batch)
        return batch.encoded or [_NOTHING], [np.array(grey) for grey in batch.is_grey or [True]]

    def close(self, *, wait: bool = True) -> None:
        """Stop the threads after their current reads; drop batches that were not taken."""
        self._drop()
        if self._pool is not None:
            self._pool.shutdown(wait, cancel_futures=True)
            self._pool = None

    def _drop(self) -> None:
        for future in itertools.chain(*self._reading):
            future.cancel()
        self._reading.clear()
        self.fed.clear()
        self._held = None

    def pictures_of(self, tile: int) -> list[ImageSource | None]:
        """The image and the maps of a tile of this epoch."""
        return [self._tiles[tile].image, *(column.of(self._tiles[tile]) for column in self._columns.maps)]

    def report(self, tile: int, picture: int, reason: str) -> None:
        """Quarantine a tile; TileReadError if the limit is exceeded."""
        self._quarantine.report(self._epoch, self._tiles[tile], self.pictures_of(tile)[picture], reason)

    def _begin(self, plan: Plan) -> list[Future[list[_Sample | None]]]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="fastmtl-read")
        bounds = np.unique(np.linspace(0, len(plan.samples), self._num_threads + 1).astype(int)).tolist()
        return [self._pool.submit(self._read, plan, start, stop) for start, stop in itertools.pairwise(bounds)]

    def _read(self, plan: Plan, start: int, stop: int) -> list[_Sample | None]:
        rows = zip(plan.samples[start:stop].tolist(), plan.repeats[start:stop].tolist(), strict=True)
        return [self._sample(tile, repeat) for tile, repeat in rows]

    def _sample(self, wanted: int, repeat: int) -> _Sample | None:
        """None for a dropped tile."""
        tile = wanted
        for attempt in range(_MAX_SUBSTITUTES):
            if not self._quarantine.is_known(self._tiles[tile]):
                mosaics = self._try(tile)
                if mosaics is not None:
                    return tile, mosaics
            if not self._replace:
                return None
            tile = substitutes(wanted, self._tiles, seed=self._seed, epoch=self._epoch, repeat=repeat, attempt=attempt)
        raise RuntimeError(f"{_MAX_SUBSTITUTES} tiles drawn to replace {self._tiles[wanted].id} are damaged too")

    def _try(self, tile: int) -> list[Mosaic | None] | None:
        mosaics: list[Mosaic | None] = []
        decoded = [3, *(1 if column.is_grey else 3 for column in self._columns.maps)]
        wanted = [3, *(1 if column.is_grey else None for column in self._columns.maps)]
        for number, picture in enumerate(self.pictures_of(tile)):
            try:
                mosaic = None if picture is None else self._pictures.read(picture, decoded[number])
                mosaics.append(mosaic and _with_channels(mosaic, wanted[number]))
            except Exception as error:  # files, slides and drawings raise many types; all mean a damaged tile
                reason = reason_of(error)
                self.report(tile, number, reason.removeprefix(f"{file_of(picture)}: ") if picture else reason)
                return None
        return mosaics

    def _gather(self, plan: Plan, samples: list[_Sample | None]) -> EncodedBatch:
        kept = np.array([row for row, sample in enumerate(samples) if sample is not None], np.int64)
        read = [sample for sample in samples if sample is not None]
        tiles = np.array([tile for tile, _ in read], np.int64)
        # If one tile of a pair was replaced, neither has a partner.
        whole = np.zeros(len(samples), bool)
        whole[kept] = tiles == plan.samples[kept]
        place = np.full(len(samples) + 1, NO_PARTNER)
        place[kept] = np.arange(len(kept))
        partners = np.where(whole & whole[plan.partners], place[plan.partners], NO_PARTNER)
        partners = np.where(plan.partners == NO_PARTNER, NO_PARTNER, partners)[kept]
        mosaics = [list(column) for column in zip(*(pictures for _, pictures in read), strict=True)]
        mosaics = mosaics or [[] for _ in range(1 + len(self._columns.maps))]
        encoded, is_grey, numbers = [], [], []
        known: dict[tuple[bool, object], int] = {}
        for column, row in enumerate(mosaics):
            grey = column > 0 and self._columns.maps[column - 1].is_grey
            numbers.append([])
            for mosaic in row:
                places = []
                for part in mosaic.tiles if mosaic else ():
                    if part.data is None:
                        places.append(-1)
                        continue
                    same = grey, part.stored or len(encoded)  # neighbouring regions share tiles of a slide
                    places.append(known.setdefault(same, len(encoded)))
                    if places[-1] == len(encoded):
                        encoded.append(part.data)
                        is_grey.append(grey)
                numbers[-1].append(places)
        drawn = self._augmentation.sample(self._seed, self._epoch, plan.samples[kept], plan.repeats[kept])
        return EncodedBatch(tiles, partners, drawn, mosaics, numbers, encoded, is_grey)


def _with_channels(mosaic: Mosaic, wanted: int | None) -> Mosaic:
    """Give tiles with pixels as many channels as decoded ones: grey is repeated; of RGB the first is taken, because a
    grey map has equal channels. None leaves them as they are."""
    if wanted is None or all(tile.pixels is None or tile.pixels.shape[2] == wanted for tile in mosaic.tiles):
        return mosaic
    return Mosaic([piece if piece.pixels is None else _converted(piece, wanted) for piece in mosaic.tiles], mosaic.size)


def _converted(tile: EncodedTile, wanted: int) -> EncodedTile:
    pixels = tile.pixels
    if pixels is None or pixels.shape[2] not in (1, 3):
        raise ValueError(f"an image must have 1 or 3 channels; got {0 if pixels is None else pixels.shape[2]}")
    pixels = np.repeat(pixels[:, :, :1], 3, 2) if wanted == 3 else np.ascontiguousarray(pixels[:, :, :1])
    return changed(tile, pixels=pixels)
