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

_TURNS, _DRAWS, _PASSES = 6, 7, 8  # kinds of random numbers; those below are of `order`


def set_samples(
    sets: NDArray[np.int64],
    shares: Sequence[float],
    *,
    seed: int,
    epoch: int,
    batch: int,
    mixed: bool,
    since: int = 0,
    before: Sequence[int] = (),
) -> NDArray[np.int64]:
    """The tiles of an epoch in order, those of all ranks: ceil(N / batch) batches, each of one set; or, `mixed`, N
    tiles of all sets.

    Args:
        sets: int64 [N], the set of each tile.
        shares: of each set, with sum 1.
        seed, epoch: of the draws.
        batch: tiles in a batch of all ranks.
        mixed: whether a batch has tiles of all sets.
        since: the epoch from which on the shares are these, at most `epoch`.
        before: samples of each set in the epochs before `since`; none if empty.
    """
    unit, number = (1, len(sets)) if mixed else (batch, -(-len(sets) // batch))
    counts = _counts(shares, number, seed, epoch)
    starts = drawn_before(
        len(sets), shares, seed=seed, epoch=epoch, batch=batch, mixed=mixed, since=since, before=before
    )
    turns = np.repeat(np.arange(len(shares)), counts)
    turns = np.repeat(turns[order.permutation(number, seed, _TURNS, epoch)], unit)
    samples = np.empty(len(turns), np.int64)
    for one in range(len(shares)):
        tiles = np.flatnonzero(sets == one)
        samples[turns == one] = tiles[_passes(len(tiles), int(starts[one]), unit * int(counts[one]), seed, one)]
    return samples


def drawn_before(
    num_tiles: int,
    shares: Sequence[float],
    *,
    seed: int,
    epoch: int,
    batch: int,
    mixed: bool,
    since: int = 0,
    before: Sequence[int] = (),
) -> NDArray[np.int64]:
    """int64 [S]: the samples of each set in all epochs before `epoch`, of all ranks; arguments as for `set_samples`."""
    unit, number = (1, num_tiles) if mixed else (batch, -(-num_tiles // batch))
    found = np.array(before or [0] * len(shares), np.int64)
    return sum((unit * _counts(shares, number, seed, earlier) for earlier in range(since, epoch)), found)


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
