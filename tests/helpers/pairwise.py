"""Combinations of options in which every pair of values meets once, and each option over its values alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from random import Random
from typing import Any

Options = Mapping[str, Sequence[Any]]


def pairwise(options: Options) -> list[dict[str, Any]]:
    """Greedy covering array: rows of one value an option; any two values of two options stand in a row together.

    A row starts from the first pair still missing and takes, option by option, the value that adds most missing pairs.
    Values are told apart by their place, so they need not be hashable.
    """
    sizes = [len(values) for values in options.values()]
    missing = {
        ((a, i), (b, j)): None  # a dict keeps the order, so the array is the same every time
        for a, b in combinations(range(len(sizes)), 2)
        for i in range(sizes[a])
        for j in range(sizes[b])
    }

    def gain(row: dict[int, int], option: int, value: int) -> int:
        return sum(tuple(sorted(((option, value), cell))) in missing for cell in row.items())

    rows: list[dict[str, Any]] = []
    ties = Random(0)  # broken by chance, so that options no pair needs any more stay independent of each other
    while missing:
        row = dict(next(iter(missing)))
        for option, size in enumerate(sizes):
            if option not in row:
                values = ties.sample(range(size), size)
                row[option] = max(values, key=lambda value: gain(row, option, value))
        for pair in combinations(sorted(row.items()), 2):
            missing.pop(pair, None)
        rows.append({name: values[row[n]] for n, (name, values) in enumerate(options.items())})
    return rows


def singles(options: Options) -> list[dict[str, Any]]:
    """No option, then every option over its values but the first, the default, with the others left out."""
    return [{}, *({name: value} for name, values in options.items() for value in values[1:])]
