"""The order of tiles over all ranks: pure functions of (seed, epoch), without state."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_STREAM = 0x6F72646572


def epoch_order(num_tiles: int, *, seed: int, epoch: int, shuffle: bool) -> NDArray[np.int64]:
    """int64 [num_tiles]: every tile once."""
    if not shuffle:
        return np.arange(num_tiles)
    return _permutation(num_tiles, np.random.Philox(key=[seed, _STREAM], counter=[0, 0, 0, epoch]))


def balanced_order(labels: Sequence[Any], *, seed: int, epoch: int, power: float = 1.0) -> NDArray[np.int64]:
    """int64 [len(labels)]: drawn with replacement, a class of n tiles in proportion to n^(1 - power)."""
    bits = np.random.Philox(key=[seed, _STREAM], counter=[0, 0, 1, epoch])
    return drawn_by_class(labels, len(labels), bits, power)


def drawn_by_class(labels: Sequence[Any], number: int, bits: np.random.Philox, power: float = 1.0) -> NDArray[np.int64]:
    """int64 [number]: positions in `labels`, drawn with replacement, a label that occurs n times in proportion to
    n^(1 - power): each label equally likely with 1, each position with 0."""
    groups = [np.flatnonzero(np.asarray(labels) == label) for label in sorted(set(labels))]
    draws = (bits.random_raw((number, 2)) >> np.uint64(11)) * 2.0**-53
    sizes = np.array([len(group) for group in groups])
    edges = np.cumsum(sizes ** (1.0 - power))
    classes = np.searchsorted(edges / edges[-1], draws[:, 0], side="right")
    within = (draws[:, 1] * sizes[classes]).astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    return np.concatenate(groups)[starts[classes] + within]


def members(keys: Sequence[Hashable]) -> list[NDArray[np.int64]]:
    """The positions of each distinct key, ascending; keys in order of first appearance."""
    found: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        found.setdefault(key, []).append(position)
    return [np.array(positions, np.int64) for positions in found.values()]


def slide_runs(
    slides: Sequence[str],
    labels: Sequence[Any] | None,
    *,
    seed: int,
    epoch: int,
    per_slide: int,
    power: float = 1.0,
    pieces: Sequence[Hashable | None] | None = None,
) -> list[NDArray[np.int64]]:
    """For each slide, in a new order each epoch, its tiles: all, or `per_slide` of them if that is not 0. With `labels`
    they are drawn as by `drawn_by_class` from each slide. A slide's tiles that are equal in `pieces` follow each
    other; None is equal to nothing."""
    tiles = members(slides)
    runs = []
    for slide in _permutation(len(tiles), np.random.Philox(key=[seed, _STREAM], counter=[0, 0, 2, epoch])).tolist():
        here = tiles[slide]
        number = min(len(here), per_slide or len(here))
        bits = np.random.Philox(key=[seed, _STREAM], counter=[0, slide, 3, epoch])
        if labels is None:
            run = here[_permutation(len(here), bits)[:number]]
        else:
            run = here[drawn_by_class([labels[tile] for tile in here.tolist()], number, bits, power)]
        runs.append(run if pieces is None else _together(run, pieces))
    return runs


def _together(run: NDArray[np.int64], pieces: Sequence[Hashable | None]) -> NDArray[np.int64]:
    """The tiles of `run`, those of a piece moved to the piece's first one."""
    firsts: dict[Hashable, int] = {}
    places = []
    for place, tile in enumerate(run.tolist()):
        piece = pieces[tile]
        places.append(place if piece is None else firsts.setdefault(piece, place))
    return run[np.argsort(np.array(places), kind="stable")]


def interleaved(runs: Sequence[NDArray[np.int64]], *, seed: int, epoch: int, open_slides: int) -> NDArray[np.int64]:
    """The tiles of all runs: each is drawn from one of `open_slides` runs, and the next run takes the place of one that
    is empty. Batches are diverse, and a slide is read while it is in the caches."""
    samples = np.concatenate(runs)
    ends = np.cumsum([len(run) for run in runs])
    queues = [list(range(end - len(run), end)) for run, end in zip(runs, ends.tolist(), strict=True)]
    bits = np.random.Philox(key=[seed, _STREAM], counter=[0, 0, 4, epoch])
    return samples[_pick(queues, open_slides, (bits.random_raw(len(samples)) >> np.uint64(11)).tolist())]


def _pick(queues: list[list[int]], open_slides: int, draws: list[int]) -> NDArray[np.int64]:
    waiting, opened, picked = iter(queues), [], []
    for draw in draws:
        while len(opened) < open_slides and (queue := next(waiting, None)) is not None:
            opened.append(queue[::-1])
        at = draw % len(opened)
        picked.append(opened[at].pop())
        if not opened[at]:
            opened.pop(at)
    return np.array(picked, np.int64)


def neighbours(cases: Sequence[Hashable], positions: Sequence[float]) -> list[NDArray[np.int64]]:
    """For each case of two tiles or more, int64 [n - 1, 2]: its pairs of tiles consecutive by position."""
    where, found = np.asarray(positions, np.float64), []
    for tiles in members(cases):
        along = tiles[np.argsort(where[tiles], kind="stable")]
        if len(along) > 1:
            found.append(np.stack([along[:-1], along[1:]], 1))
    return found


def pair_batches(
    cases: Sequence[NDArray[np.int64]],
    apart: Sequence[Hashable],
    *,
    seed: int,
    epoch: int,
    pairs: int,
    drop_last: bool,
) -> list[NDArray[np.int64]]:
    """Batches int64 [P, 2] of all ranks together: of each case of n tiles n // 2 of its n - 1 pairs, no two in a batch
    from cases that are the same in `apart`, P at most `pairs`.

    The owners (equal values of `apart`) with most pairs left are served first, so that batches stay full as long as
    possible. The number and sizes of batches depend on the cases alone, not on the draws.
    """
    bits = np.random.Philox(key=[seed, _STREAM], counter=[0, 0, 5, epoch])
    drawn = [case[_permutation(len(case), bits)[: (len(case) + 1) // 2]] for case in cases]
    owned = [np.concatenate([drawn[case] for case in owner]) for owner in members(apart)]
    left = [pairs_of[_permutation(len(pairs_of), bits)].tolist() for pairs_of in owned]
    batches = []
    while True:
        remaining = np.array([len(owner) for owner in left])
        number = min(pairs, int((remaining > 0).sum()))
        if number == 0 or (drop_last and number < pairs):
            return batches
        shuffled = _permutation(len(left), bits)
        chosen = shuffled[np.argsort(-remaining[shuffled], kind="stable")][:number]
        chosen = chosen[_permutation(number, bits)]  # so that no rank always has the larger owners
        batches.append(np.array([left[owner].pop() for owner in chosen.tolist()], np.int64))


def repeats(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [len(order)]: earlier occurrences of the same tile in `order`."""
    by_tile = np.argsort(order, kind="stable")
    tiles = order[by_tile]
    first = np.searchsorted(tiles, tiles, side="left")
    result = np.empty_like(order)
    result[by_tile] = np.arange(len(order)) - first
    return result


def bits(seed: int, kind: int, epoch: int, part: int = 0) -> np.random.Philox:
    """The random bits of one kind of draw; kinds 0 to 5 are those of this module."""
    return np.random.Philox(key=[seed, _STREAM], counter=[0, part, kind, epoch])


def permutation(count: int, seed: int, kind: int, epoch: int, part: int = 0) -> NDArray[np.int64]:
    """int64 [count]: all numbers below `count` in an order drawn by `bits`."""
    return _permutation(count, bits(seed, kind, epoch, part))


def _permutation(count: int, bits: np.random.Philox) -> NDArray[np.int64]:
    # Generator.permutation may change between NumPy versions, and a resumed run would see other tiles.
    return np.argsort(bits.random_raw(count), kind="stable")
