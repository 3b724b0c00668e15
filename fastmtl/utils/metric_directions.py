"""Whether higher values of a metric are better, for reports and for gains over a baseline.

A task can declare it in `higher_is_better` (name -> bool), or its torchmetrics do; the names below are known too. The
direction of other metrics is unknown, so reports mark no best value for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .score_names import score_names

HIGHER_IS_BETTER: dict[str, bool | None] = {
    **dict.fromkeys(("dice", "jaccard", "iou", "pixel_accuracy", "found"), True),
    **dict.fromkeys(("accuracy", "balanced_accuracy", "auroc", "sensitivity", "specificity", "per_class", "r2"), True),
    **dict.fromkeys(("mae", "rmse", "false_positives", "false_negatives"), False),
    "fp_to_fn": None,  # best near 1
}


def directions_of(tasks: Iterable[Any]) -> dict[str, dict[str, bool]]:
    """Task -> metric -> whether higher is better; without metrics of unknown direction."""
    found: dict[str, dict[str, bool]] = {}
    for task in tasks:
        metrics = task.metrics()
        named = metrics.items() if hasattr(metrics, "items") else ()  # a user's task may have a single one
        own = {name: getattr(metric, "higher_is_better", None) for name, metric in named}
        known = {name: HIGHER_IS_BETTER.get(name) if way is None else way for name, way in own.items()}
        known |= dict(getattr(task, "higher_is_better", {}))
        ways = {name: bool(way) for name, way in known.items() if way is not None}
        found |= {name: dict(ways) for name in score_names(task)}
    return found


def direction_of(key: str) -> bool | None:
    """Whether a higher METRIC, TASK.METRIC or score of a class or group is better, by the metric's name.

    >>> direction_of("size.mae"), direction_of("mask.per_class.dice.lung"), direction_of("mask.surface")
    (False, True, None)
    """
    first, *names = key.removeprefix("test.").split(".")
    known = [name for name in names or [first] if name in HIGHER_IS_BETTER]
    known.sort(key=lambda name: name == "per_class")  # in mask.per_class.dice it is not the metric
    return HIGHER_IS_BETTER[known[0]] if known else None
