"""Folds of whole sites with class shares as equal as possible."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_STARTS = 60
_FEW = 50  # sites; with more, a fifth of the starts
_MOST_EXCHANGES = 2**24  # numbers to compare all exchanges; with more, sites are only moved
_LACKING = 1e3  # cost of a class that is in no site of a fold, though there are sites for every fold


def balanced_folds(
    labels: Sequence[int], groups: Sequence[str], units: Sequence[str], num_folds: int, seed: int = 0
) -> list[list[str]]:
    """The units (sites) of each fold, so that folds have about equally many patients and tiles, of every class.

    Howard et al. 2021 minimise, over the assignments of S sites to F folds,

        sum over folds f, classes k of (n_fk / n_k - 1 / F)^2,  n_fk the patients of class k in fold f,

    as a quadratic program. Here k also counts the patients of all classes, and tiles in the same way, and a class that
    is at F sites or more must be in every fold. Integer programs need a solver whose answer depends on its version and
    on a limit of time. Sites are tens: moving and exchanging them until nothing improves, from the largest placed first
    and from 59 random assignments, finds the best of all assignments wherever the tests can try all. The result depends
    on the arguments alone.

    Args:
        labels: class of each tile; below 0 if it has none.
        groups: patient of each tile.
        units: site of each tile, or sites that a patient joins.
        num_folds: F, 2 to S.
        seed: of the starts; it decides among assignments that are equally good, and the order of the folds.
    """
    names, counts = _counts(labels, groups, units)
    folds = _Folds(counts, num_folds)
    random_of = random.Random(seed)
    found = []
    for start in range(_STARTS if len(names) <= _FEW else _STARTS // 5):
        at = np.array([random_of.randrange(num_folds) for _ in names])
        if start == 0:
            at = folds.place(np.argsort(-counts[:, -1], kind="stable"))
        found.append((folds.improve(at), at))
    _, best = min(found, key=lambda pair: pair[0])
    order = random_of.sample(range(num_folds), num_folds)
    return [[name for name, fold in zip(names, best, strict=True) if fold == wanted] for wanted in order]


def _counts(
    labels: Sequence[int], groups: Sequence[str], units: Sequence[str]
) -> tuple[list[str], NDArray[np.float64]]:
    """The units [S] and float64 [S, 2 (C + 1)]: their patients of each class and in all, then their tiles."""
    names, classes = sorted(set(units)), sorted({label for label in labels if label >= 0})
    row, column = ({name: n for n, name in enumerate(known)} for known in (names, classes))
    width = len(classes) + 1
    counts = np.zeros((len(names), 2 * width))
    seen = set()
    for label, group, unit in zip(labels, groups, units, strict=True):
        for at in (column[label], width - 1) if label >= 0 else (width - 1,):
            counts[row[unit], width + at] += 1
            counts[row[unit], at] += (group, at) not in seen
            seen.add((group, at))
    return names, counts


class _Folds:
    """Costs of assignments `at` [S] of sites, with `counts` [S, K], to F folds."""

    def __init__(self, counts: NDArray[np.float64], num_folds: int):
        self.counts, self.num_folds = counts, num_folds
        self.totals = counts.sum(0)
        self.needed = (counts > 0).sum(0) >= num_folds  # [K], whether there are sites for every fold

    def cost(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """The cost [...] of folds with the counts `sums` [..., K]."""
        off = ((sums / self.totals - 1 / self.num_folds) ** 2).sum(-1)
        return off + _LACKING * (self.needed & (sums < 0.5)).sum(-1)

    def sums(self, at: NDArray[np.int64]) -> NDArray[np.float64]:
        """[F, K]."""
        found = np.zeros((self.num_folds, len(self.totals)))
        np.add.at(found, at, self.counts)
        return found

    def place(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Each site, in this order, in the fold where it lowers the cost most."""
        sums, at = np.zeros((self.num_folds, len(self.totals))), np.zeros(len(order), np.int64)
        for site in order:
            at[site] = int((self.cost(sums + self.counts[site]) - self.cost(sums)).argmin())
            sums[at[site]] += self.counts[site]
        return at

    def improve(self, at: NDArray[np.int64]) -> float:
        """Move one site or exchange two, the best first, until nothing improves; changes `at`, returns its cost."""
        sites = np.arange(len(at))
        while True:
            sums = self.sums(at)
            costs = self.cost(sums)  # [F]
            left = self.cost(sums[at] - self.counts) - costs[at]  # [S], what leaving its fold changes
            moves = left[:, None] + self.cost(sums + self.counts[:, None]) - costs  # [S, F]
            moves[sites, at] = 0
            best, change = (int(moves.argmin() // self.num_folds), None), float(moves.min())
            if len(sites) ** 2 * sums.shape[1] < _MOST_EXCHANGES:
                one = self.cost(sums[at][:, None] - self.counts[:, None] + self.counts) - costs[at][:, None]
                both = np.where(at[:, None] == at, 0, one + one.T)  # [S, S]
                if both.min() < change:
                    best, change = divmod(int(both.argmin()), len(sites)), float(both.min())
            if change > -1e-12:
                return float(costs.sum())
            site, other = best
            if other is None:
                at[site] = int(moves[site].argmin())
            else:
                at[site], at[other] = at[other], at[site]
