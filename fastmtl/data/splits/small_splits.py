"""Splits of small data sets: few patients, or classes in few patients.

Stratified folds need as many images of a class as there are folds. Here patients are exchanged until the share has
about the wanted size, and each class is on every side that it has patients for.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

_STARTS = 12
_MOST_EXCHANGES = 2**24  # numbers to compare all exchanges; with more, patients are only moved


class Shares:
    """Judges and draws shares of the patients by their classes.

    Args:
        labels: of each tile; below 0 if it has none.
        groups: the patient of each tile.
        fraction: of the tiles that a share should have, 0..1.
        sides: number of sides of the split; a class with fewer patients stays out of the share, so that training has
            it.
    """

    def __init__(self, labels: Sequence[int], groups: Sequence[str], fraction: float, sides: int = 2):
        self.names = sorted(set(groups))
        classes = sorted({label for label in labels if label >= 0})
        row, column = ({name: n for n, name in enumerate(known)} for known in (self.names, classes))
        tiles = np.zeros((len(self.names), len(classes) + 1))  # the last column: all classes together
        for label, group in zip(labels, groups, strict=True):
            tiles[row[group], -1] += 1
            if label >= 0:
                tiles[row[group], column[label]] += 1
        self._counts = np.concatenate([(tiles > 0).astype(float), tiles], axis=1)  # [P, 2 (C + 1)]
        self._fraction, self._sides = fraction, sides

    def faults(self, held_out: Collection[str]) -> tuple[int, float]:
        """(classes that lack a side they have patients for, by how much the share of the tiles misses `fraction`)."""
        held = np.isin(self.names, list(held_out))
        sums, totals = self._counts[held].sum(0), self._counts.sum(0)
        return int(self._lacking(sums)), abs(float(sums[-1] / totals[-1]) - self._fraction)

    def draw(self, seed: int) -> list[str]:
        """The patients of a share with the fewest faults."""
        random_of = random.Random(seed)
        number = min(len(self.names) - 1, max(1, round(self._fraction * len(self.names))))
        found = []
        for _ in range(_STARTS):
            held = np.isin(np.arange(len(self.names)), random_of.sample(range(len(self.names)), number))
            found.append((self._exchange(held), held))
        _, best = min(found, key=lambda pair: pair[0])
        return [name for name, is_in in zip(self.names, best, strict=True) if is_in]

    def _lacking(self, sums: NDArray) -> NDArray:
        """Number of classes that lack a side, for shares with these sums [..., 2 (C + 1)]. All tiles count as one more
        class: no side may be empty."""
        classes = sums.shape[-1] // 2
        has: NDArray = sums[..., :classes]
        of: NDArray = self._counts.sum(0)[:classes]
        lacking = np.where(of < self._sides, has > 0, (has == 0) | (of - has < self._sides - 1))
        return lacking[..., :-1].sum(-1) + classes * lacking[..., -1]

    def _cost(self, sums: NDArray) -> NDArray:
        classes = sums.shape[-1] // 2
        off = (sums[..., classes:] / self._counts.sum(0)[classes:] - self._fraction) ** 2
        return 1e6 * self._lacking(sums) + off[..., :-1].sum(-1) + max(1, classes - 1) * off[..., -1]

    def _exchange(self, held: NDArray) -> float:
        """Move one patient or exchange two, greedily, until nothing improves; changes `held` [P]."""
        sums = self._counts[held].sum(0)
        cost = float(self._cost(sums))
        while True:
            signed = np.where(held[:, None], -self._counts, self._counts)
            moves = np.arange(len(held))[:, None].repeat(2, 1)
            costs = self._cost(sums + signed)
            inside, outside = np.flatnonzero(held), np.flatnonzero(~held)
            if len(inside) * len(outside) * len(sums) < _MOST_EXCHANGES:
                both = (signed[inside][:, None] + signed[outside]).reshape(-1, len(sums))
                costs = np.concatenate([costs, self._cost(sums + both)])
                moves = np.concatenate(
                    [moves, np.stack(np.meshgrid(inside, outside, indexing="ij"), -1).reshape(-1, 2)]
                )
            best = int(costs.argmin())
            if costs[best] > cost - 1e-9:
                return cost
            cost = float(costs[best])
            changed = np.unique(moves[best])
            sums = sums + signed[changed].sum(0)
            held[changed] = ~held[changed]
