"""Which rank predicts what; the same on every machine, and nothing depends on when a rank is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def share_slides(sizes: Mapping[str, int], ranks: int) -> list[list[str]]:
    """The names for each rank: the largest first, each to the rank with the fewest bytes so far. A rank may get none.

    >>> share_slides({"a": 3, "b": 9, "c": 4, "d": 1}, 2)
    [['b'], ['a', 'c', 'd']]
    """
    totals, counts, owner = [0] * ranks, [0] * ranks, {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owner[name] = rank = min(range(ranks), key=lambda rank: (totals[rank], counts[rank]))
        totals[rank] += sizes[name]
        counts[rank] += 1
    return [[name for name in sizes if owner[name] == rank] for rank in range(ranks)]


def share_helpers(sizes: Mapping[str, int], shares: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """Slide -> the ranks without a slide that help with it, each where a rank has the most bytes so far.

    >>> share_helpers({"a": 3, "b": 9}, [["b"], ["a"], [], []])
    {'b': [2, 3], 'a': []}
    """
    helpers: dict[str, list[int]] = {share[0]: [] for share in shares if share}
    for rank, share in enumerate(shares):
        if not share and helpers:
            helpers[max(helpers, key=lambda name: (sizes[name] / (1 + len(helpers[name])), name))].append(rank)
    return helpers


def share_batches(items: Sequence[T], batch_size: int, rank: int, ranks: int) -> list[T]:
    """The items of every `ranks`-th batch: whole batches, because a network's last bits depend on its batch.

    >>> [share_batches(range(7), 2, rank, 2) for rank in range(2)]
    [[0, 1, 4, 5], [2, 3, 6]]
    """
    starts = range(rank * batch_size, len(items), ranks * batch_size)
    return [item for start in starts for item in items[start : start + batch_size]]


def size_of(slide: Path) -> int:
    """Bytes of a slide, with those of the folder that it is, or that some formats have beside it; 0 if it cannot be
    read."""
    try:
        if slide.is_dir():
            return sum(file.stat().st_size for file in slide.rglob("*") if file.is_file())
        folder = slide.with_suffix("")
        files = [slide, *(folder.iterdir() if slide.suffix and folder.is_dir() else ())]
        return sum(file.stat().st_size for file in files)
    except OSError:
        return 0
