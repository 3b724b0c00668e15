"""Metrics of run summaries: of one run, their mean over folds, and the gain over single-task learning."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan

from ..utils.metric_directions import direction_of

TEST = "test."  # prefix of metrics of the test images


@dataclass(frozen=True)
class Score:
    """The values of a metric over the folds that have it."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Not finite if a value is not, so that a diverged run is visible."""
        return statistics.fmean(self.values) if self._finite else sum(self.values)

    @property
    def std(self) -> float | None:
        """The sample standard deviation (n - 1); None of a single fold."""
        if len(self.values) < 2:
            return None
        return statistics.stdev(self.values) if self._finite else nan  # `statistics` fails on non-finite values

    @property
    def _finite(self) -> bool:
        return all(map(isfinite, self.values))


def metric(summary: Mapping[str, object], key: str) -> float | None:
    """A number of a run's summary.json; None if it has none.

    Args:
        summary: with "tasks" of the held-out images and, if there is a test set, "test" of the same structure.
        key: TASK.METRIC, with further parts for nested values, or test.TASK.METRIC.

    >>> metric({"tasks": {"mask": {"per_group": {"dice": {"lung": 0.5}}}}}, "mask.per_group.dice.lung")
    0.5
    """
    part: object = summary
    if key.startswith(TEST):
        part, key = summary.get("test"), key.removeprefix(TEST)
    for name in ("tasks", *key.split(".")):
        part = part.get(name) if isinstance(part, Mapping) else None
    return float(part) if isinstance(part, int | float) and not isinstance(part, bool) else None


def over_folds(summaries: Sequence[Mapping[str, object]], key: str) -> Score | None:
    """The metric of every run that has it; None if no run does."""
    found = [value for summary in summaries if (value := metric(summary, key)) is not None]
    return Score(tuple(found)) if found else None


def delta_m(
    values: Mapping[str, float], baselines: Mapping[str, float], higher_is_better: Mapping[str, bool] | None = None
) -> float:
    """Average gain per task over single-task learning, percent.

    delta_m = 100 / K sum_k s_k (M_k - B_k) / |B_k|, s_k = 1 if a higher M_k is better and -1 if a lower one is, as for
    errors (Mask2Tasks, appendix A.2; Liu et al., FAMO).

    Args:
        values: metric -> M_k; metrics that are not in `baselines` are ignored.
        baselines: metric -> B_k.
        higher_is_better: metric -> whether larger is better; for missing metrics the name decides, see `directions`;
            for unknown names larger is better.

    Raises:
        ValueError: a baseline without a value, or one of 0.

    >>> round(delta_m({"accuracy": 0.916, "jaccard": 0.884}, {"accuracy": 0.874, "jaccard": 0.880}), 3)
    2.63
    """
    missing = [name for name in baselines if name not in values]
    if missing or not baselines:
        raise ValueError(f"`values` must have every baseline's metric; {missing[0] if missing else 'there is none'}.")
    if any(base == 0 for base in baselines.values()):
        raise ValueError("`baselines` must not be 0: the gain is relative to them.")
    ways = {name: direction_of(name) is not False for name in baselines} | dict(higher_is_better or {})
    gains = {name: (values[name] - base) / abs(base) for name, base in baselines.items()}
    return 100 * statistics.fmean(gain if ways[name] else -gain for name, gain in gains.items())
