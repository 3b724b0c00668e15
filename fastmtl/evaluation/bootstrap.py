"""The bootstrap over patients: intervals of scores and of differences between two rows of a table.

A resample draws as many patients as there are, with replacement; all images of a drawn patient count as often as the
patient was drawn (Efron and Tibshirani, An Introduction to the Bootstrap, 1993). Images of one patient are alike, so a
resample of single images would claim too much certainty.

Shapes: R resamples, P patients of all runs, n images of a run, p patients of a run, k sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_CHUNK = 2_000_000  # counts drawn at a time, to bound the memory
_LEVEL = 0.95

Floats = NDArray[np.float64]


class Statistic(Protocol):
    """A score of one run's images, computed from how often each of its patients was drawn."""

    @property
    def patients(self) -> Sequence[str]:
        """The columns of `counts`."""
        ...

    def __call__(self, counts: Floats) -> Floats:
        """counts [R, p] -> scores [R]; NaN where the drawn images do not define one."""
        ...


class Interval(NamedTuple):
    """95%, percentiles."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A row's score minus the reference row's.

    Attributes:
        value: of the images as they are.
        interval: of the difference.
        p: two-sided: twice the smaller share of resamples on one side of 0, at most 1.
        num_patients: that were resampled.
    """

    value: float
    interval: Interval
    p: float
    num_patients: int


def resamples(patients: int, count: int = RESAMPLES, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """How often each patient was drawn, [r, P] at a time, `count` resamples in all; the same in every call."""
    random = np.random.default_rng(seed)
    size = max(1, min(count, _CHUNK // max(patients, 1)))
    for start in range(0, count, size):
        rows = min(size, count - start)
        drawn = random.integers(patients, size=(rows, patients)) + patients * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients).astype(np.float64)


def intervals(statistics: Mapping[str, Sequence[Statistic]], count: int = RESAMPLES) -> dict[str, Interval]:
    """For each name the interval of the mean of its statistics, one per run; without those that have none.

    There is no interval of fewer than two patients, or of a score that most resamples leave undefined.
    """
    drawn = _drawn({name: (ones, ()) for name, ones in statistics.items()}, count)
    return {name: found for name, values in drawn.items() if (found := _interval(values)) is not None}


def differences(
    pairs: Mapping[str, tuple[Sequence[Statistic], Sequence[Statistic]]], count: int = RESAMPLES
) -> dict[str, Difference]:
    """For each name the difference between the means of two lists of statistics, a row's and the reference row's.

    Both rows are scored on the same drawn patients, so that what makes a patient difficult for both cancels out.
    """
    found = {}
    for name, values in _drawn(pairs, count).items():
        interval = _interval(values)
        first, second = pairs[name]
        value = mean_of(first) - mean_of(second)
        if interval is not None and math.isfinite(value):
            values = values[np.isfinite(values)]
            sides = min(int((values <= 0).sum()), int((values >= 0).sum()))
            p = min(1.0, 2 * (sides + 1) / (len(values) + 1))
            found[name] = Difference(value, interval, p, len(_patients([*first, *second])))
    return found


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for the number of comparisons (Holm 1979).

    >>> {name: round(value, 6) for name, value in holm({"a": 0.01, "b": 0.04, "c": 0.03}).items()}
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    corrected, highest = {}, 0.0
    for place, name in enumerate(sorted(p, key=lambda name: p[name])):
        highest = max(highest, min(1.0, (len(p) - place) * p[name]))
        corrected[name] = highest
    return corrected


def mean_of(statistics: Sequence[Statistic]) -> float:
    """The mean over the runs of the score of all images; NaN if no run has one."""
    values = [one(np.ones((1, len(one.patients))))[0] for one in statistics]
    known = [float(value) for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def mean_over_patients(statistic: Statistic) -> float:
    """The mean of the scores of each patient's images; NaN if there are none."""
    values = statistic(np.eye(len(statistic.patients)))
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _drawn(pairs: Mapping[str, tuple[Sequence[Statistic], Sequence[Statistic]]], count: int) -> dict[str, Floats]:
    """For each name the resampled differences [count], of means over the runs.

    Names with the same patients share their draws: drawing is most of the work.
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, sides in pairs.items():
        alike.setdefault(tuple(_patients([one for side in sides for one in side])), []).append(name)
    found: dict[str, Floats] = {}
    for patients, names in alike.items():
        if len(patients) < 2:
            continue
        place = {name: number for number, name in enumerate(patients)}
        columns = {
            id(one): np.array([place[name] for name in one.patients])
            for name in names
            for side in pairs[name]
            for one in side
        }
        parts: dict[str, list[Floats]] = {name: [] for name in names}
        for counts in resamples(len(patients), count):
            for name in names:
                sides = (_mean([one(counts[:, columns[id(one)]]) for one in side], len(counts)) for side in pairs[name])
                parts[name].append(next(sides) - next(sides))
        found |= {name: np.concatenate(values) for name, values in parts.items()}
    return found


def _mean(values: Sequence[Floats], count: int) -> Floats:
    """Over the runs whose score a resample defines; 0 without runs."""
    if not values:
        return np.zeros(count)
    stacked = np.stack(values)
    known = np.isfinite(stacked)
    with np.errstate(invalid="ignore"):
        return np.where(known, stacked, 0.0).sum(0) / known.sum(0)


def _interval(values: Floats) -> Interval | None:
    known = values[np.isfinite(values)]
    if len(known) < max(2, len(values) / 2):
        return None
    low, high = np.quantile(known, ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2))
    return Interval(float(low), float(high))


def _patients(statistics: Sequence[Statistic]) -> list[str]:
    return sorted({name for one in statistics for name in one.patients})
