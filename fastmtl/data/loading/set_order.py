"""The order of tiles of several data sets: pure functions of seed, epoch and what was drawn before the shares changed.

The draws of an epoch, batches or samples, are divided among the sets by their shares: a set gets the whole number below
or above its part, at random but so that it gets its part on average. Each set is one endless sequence of shuffled
passes over its tiles, which an epoch continues where the epoch before ended.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from . import order
from .tile_sets import TileSets

_TURNS, _DRAWS, _PASSES = 6, 7, 8  # kinds of random numbers; those below are of `order`


def set_samples(numbers: NDArray[np.int64], sets: TileSets, *, seed: int, epoch: int, batch: int) -> NDArray[np.int64]:
    """The tiles of an epoch in order, those of all ranks: ceil(N / batch) batches, each of one set; or, mixed, N tiles
    of all sets.

    Args:
        numbers: int64 [N], the set of each tile.
        sets: their shares, and how they are drawn.
        seed, epoch: of the draws; the epoch is not before `sets.since`.
        batch: tiles in a batch of all ranks.
    """
    unit, draws = _draws(len(numbers), sets, batch)
    counts = _counts(sets.shares, draws, seed, epoch)
    starts = drawn_before(len(numbers), sets, seed=seed, epoch=epoch, batch=batch)
    turns = np.repeat(np.arange(len(counts)), counts)
    turns = np.repeat(turns[order.permutation(draws, seed, _TURNS, epoch)], unit)
    samples = np.empty(len(turns), np.int64)
    for one in range(len(counts)):
        tiles = np.flatnonzero(numbers == one)
        samples[turns == one] = tiles[_passes(len(tiles), int(starts[one]), unit * int(counts[one]), seed, one)]
    return samples


def drawn_before(num_tiles: int, sets: TileSets, *, seed: int, epoch: int, batch: int) -> NDArray[np.int64]:
    """int64 [S]: the samples of each set in all epochs before `epoch`, of all ranks; arguments as for `set_samples`."""
    unit, draws = _draws(num_tiles, sets, batch)
    found = np.array(sets.before or [0] * len(sets.shares), np.int64)
    return sum((unit * _counts(sets.shares, draws, seed, earlier) for earlier in range(sets.since, epoch)), found)


def _draws(num_tiles: int, sets: TileSets, batch: int) -> tuple[int, int]:
    """The samples of a draw, and the draws of an epoch."""
    return (1, num_tiles) if sets.mixed else (batch, -(-num_tiles // batch))


def _counts(shares: Sequence[float], number: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """int64 [S] with sum `number`: how often each set is drawn in an epoch. The draws are the points u, u + 1, ... on a
    line of length `number`, on which each set has its share."""
    bits = order.bits(seed, _DRAWS, epoch)
    u = float(bits.random_raw() >> np.uint64(11)) * 2.0**-53
    ends = np.cumsum(shares) / np.sum(shares) * number
    ends[-1] = number
    return np.diff(np.ceil(ends - u).astype(np.int64).clip(0, number), prepend=0)


def _passes(size: int, start: int, count: int, seed: int, one: int) -> NDArray[np.int64]:
    """int64 [count] below `size`: the part from `start` of shuffled passes over `size` tiles, one after the other."""
    if not count:
        return np.zeros(0, np.int64)
    first, last = start // size, (start + count - 1) // size
    passes = [order.permutation(size, seed, _PASSES, number, one) for number in range(first, last + 1)]
    return np.concatenate(passes)[start - first * size :][:count]
