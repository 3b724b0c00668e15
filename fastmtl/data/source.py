"""Where a loader's encoded images come from, and the feed that hands them to DALI batch by batch.

A source knows how to find the bytes of sample i and nothing of order, batches or pixels; slides are another source.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .augment import Augmentation
from .dataset import Tile

Encoded = NDArray[np.uint8]

# A 1 x 1 black image (PGM): what is decoded for a mask that does not exist.
_NO_MASK = np.frombuffer(b"P5\n1 1\n255\n\x00", np.uint8)


class Source(Protocol):
    """Random access to encoded samples."""

    def image(self, index: int) -> Encoded:
        """The encoded image of sample `index`: any format DALI decodes."""
        ...

    def mask(self, index: int) -> Encoded:
        """The encoded mask; a black image where there is none."""
        ...


class FileSource:
    """Reads whole files."""

    def __init__(self, tiles: Sequence[Tile]):
        self._tiles = tiles

    def image(self, index: int) -> Encoded:
        return _read(self._tiles[index].image)

    def mask(self, index: int) -> Encoded:
        path = self._tiles[index].mask
        return _NO_MASK if path is None else _read(path)


class Plan(NamedTuple):
    """One batch to come: int64 [B] sample numbers, and how often each came before in the epoch."""

    samples: NDArray[np.int64]
    repeats: NDArray[np.int64]


class Feed:
    """What DALI calls for its next batch: reads the files and draws the parameters of the planned samples.

    Fields, each a list of B: encoded image; matrix float32 [2, 3] from output pixels (`size` a side) to 0..1 across the
    source; colour float32 [4] if the augmentation has any; encoded mask if `with_mask`.
    """

    def __init__(self, source: Source, augmentation: Augmentation, *, seed: int, size: int, with_mask: bool):
        self._source, self._augmentation, self._seed, self._with_mask = source, augmentation, seed, with_mask
        self._per_pixel = np.array([1 / size, 1 / size, 1], np.float32)
        self._epoch = 0
        self._plans: Sequence[Plan] = ()
        self.num_fed = 0

    def start(self, epoch: int, plans: Sequence[Plan]) -> None:
        """Feed these batches next."""
        self._epoch, self._plans, self.num_fed = epoch, plans, 0

    def __call__(self, _iteration: int) -> tuple[list[NDArray], ...]:
        if self.num_fed >= len(self._plans):
            raise StopIteration
        samples, repeats = self._plans[self.num_fed]
        self.num_fed += 1  # before reading, so that a failure is looked for in this batch too
        drawn = self._augmentation.sample(self._seed, self._epoch, samples, repeats)
        fields = [[self._source.image(index) for index in samples.tolist()], list(drawn.matrix * self._per_pixel)]
        if self._augmentation.changes_colour:
            fields.append(list(drawn.colour))
        if self._with_mask:
            fields.append([self._source.mask(index) for index in samples.tolist()])
        return tuple(fields)


def _read(path: Path) -> Encoded:
    return np.fromfile(path, np.uint8)
