"""Data sets side by side in one list of tiles: which set a tile is of, and which tasks it can have labels for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...protocols import Batch
from ..dataset import Tile


@dataclass(frozen=True)
class TileSets:
    """The sets that tiles are of; a tile's own label is the number of its set.

    Attributes:
        names: of the sets.
        tasks: for each set the tasks that it has labels for. Its tiles have no label for other tasks.
        shares: of each set in the drawn samples, > 0; used when shuffling.
        mixed: whether a drawn batch takes its samples from all sets; otherwise from one.
        since: the epoch from which on the shares are these.
        before: samples drawn from each set before this epoch, on all ranks; () if it is the first.
    """

    names: tuple[str, ...]
    tasks: tuple[tuple[str, ...], ...]
    shares: tuple[float, ...]
    mixed: bool = False
    since: int = 0
    before: tuple[int, ...] = ()

    def numbers(self, tiles: Sequence[Tile]) -> NDArray[np.int64]:
        """int64 [N]: the set of each tile.

        Raises:
            ValueError: a tile is of no set.
        """
        for tile in tiles:
            if tile.label is None or not 0 <= tile.label < len(self.names):
                raise ValueError(
                    f"`sets` needs the number of its set as label of each tile; {tile.id} has {tile.label}"
                )
        return np.array([tile.label for tile in tiles], np.int64)

    def has_task(self, task: str) -> NDArray[np.bool_]:
        """bool [S]: the sets that have labels for the task."""
        return np.array([task in own for own in self.tasks], bool)

    def name(self, batch: Batch, tile: Tile, tasks: Iterable[str]) -> Batch:
        """The batch of the set of `tile` with the set's name and those of its `tasks`, in their order."""
        number = int(self.numbers([tile])[0])
        own = tuple(task for task in tasks if task in self.tasks[number])
        return replace(batch, set=self.names[number], tasks=own)

    def mixing(self) -> dict[str, Any]:
        """The part that changes with the shares; JSON types."""
        return {"shares": list(self.shares), "since": self.since, "before": list(self.before)}

    def with_mixing(self, state: Mapping[str, Any]) -> TileSets:
        """The same sets with the `mixing` of others."""
        shares, before = tuple(map(float, state["shares"])), tuple(map(int, state["before"]))
        return replace(self, shares=shares, since=int(state["since"]), before=before)

    def state(self) -> dict[str, Any]:
        """What the order of tiles depends on; JSON types."""
        found = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        del found["since"], found["before"]
        return found | {"tasks": [list(own) for own in self.tasks]}


def shares_of(sizes: Mapping[str, int], weights: Mapping[str, float], temperature: float = 1.0) -> dict[str, float]:
    """The share of each set in the drawn samples, with sum 1.

    Args:
        sizes: set -> number of training tiles.
        weights: set -> weight; empty draws a set of n tiles in proportion to n^(1 / temperature).
        temperature: 1 draws all tiles equally often, larger values the sets more equally.

    >>> shares_of({"a": 100, "b": 400}, {}, 2.0)
    {'a': 0.3333333333333333, 'b': 0.6666666666666666}
    """
    found = weights or sizes
    largest = max(found.values())  # without it, large weights and low temperatures have no sum
    found = {name: (value / largest) ** (1.0 if weights else 1 / temperature) for name, value in found.items()}
    total = sum(found.values())
    return {name: value / total for name, value in found.items()}
