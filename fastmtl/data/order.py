"""Which tile comes when, on which rank: pure functions of (seed, epoch), with no state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_STREAM = 0x6F72646572


def epoch_order(num_tiles: int, *, seed: int, epoch: int, shuffle: bool) -> NDArray[np.int64]:
    """int64 [num_tiles]: every tile once."""
    if not shuffle:
        return np.arange(num_tiles)
    return _permutation(num_tiles, np.random.Philox(key=[seed, _STREAM], counter=[0, 0, 0, epoch]))


def balanced_order(labels: Sequence[int], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """int64 [len(labels)]: drawn with replacement so that each class is as likely as any other."""
    members = [np.flatnonzero(np.asarray(labels) == label) for label in sorted(set(labels))]
    bits = np.random.Philox(key=[seed, _STREAM], counter=[0, 0, 1, epoch])
    draws = (bits.random_raw((len(labels), 2)) >> np.uint64(11)) * 2.0**-53
    classes = (draws[:, 0] * len(members)).astype(np.int64)
    sizes = np.array([len(member) for member in members])
    within = (draws[:, 1] * sizes[classes]).astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    return np.concatenate(members)[starts[classes] + within]


def wrapped(order: NDArray[np.int64], world_size: int) -> NDArray[np.int64]:
    """`order` with tiles repeated from its start until `world_size` ranks have equally many."""
    return np.resize(order, -(-len(order) // world_size) * world_size)


def repeats(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [len(order)]: how often the same tile stands earlier in `order`."""
    by_tile = np.argsort(order, kind="stable")
    tiles = order[by_tile]
    first = np.searchsorted(tiles, tiles, side="left")
    result = np.empty_like(order)
    result[by_tile] = np.arange(len(order)) - first
    return result


def _permutation(count: int, bits: np.random.Philox) -> NDArray[np.int64]:
    # Generator.permutation may change between NumPy versions, and with it what a resumed run has already seen.
    return np.argsort(bits.random_raw(count), kind="stable")
