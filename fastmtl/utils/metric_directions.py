"""Which way a metric points: whether more of it is better. For reports, and for gains over a baseline.

A task says it of its own metrics in `higher_is_better` (name -> bool), or its torchmetrics do; the names below are
known besides. The direction of any other metric is unknown, and no value of it is called the best.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

HIGHER_IS_BETTER: dict[str, bool] = {
    **dict.fromkeys(("dice", "jaccard", "iou", "pixel_accuracy", "found"), True),
    **dict.fromkeys(("accuracy", "auroc", "sensitivity", "specificity", "per_class", "r2"), True),
    **dict.fromkeys(("mae", "rmse"), False),
}


def directions_of(tasks: Iterable[Any]) -> dict[str, dict[str, bool]]:
    """Task -> metric -> whether more is better; metrics of unknown direction are left out."""
    found = {}
    for task in tasks:
        metrics = task.metrics()
        named = metrics.items() if hasattr(metrics, "items") else ()  # a task of one's own may have a single one
        own = {name: getattr(metric, "higher_is_better", None) for name, metric in named}
        known = {name: HIGHER_IS_BETTER.get(name) if way is None else way for name, way in own.items()}
        known |= dict(getattr(task, "higher_is_better", {}))
        found[task.name] = {name: bool(way) for name, way in known.items() if way is not None}
    return found


def direction_of(key: str) -> bool | None:
    """Whether more is better of METRIC or TASK.METRIC, or of a score of single classes or groups, by the metric's name.

    >>> direction_of("size.mae"), direction_of("mask.per_class.dice.lung"), direction_of("mask.surface")
    (False, True, None)
    """
    first, *names = key.removeprefix("test.").split(".")
    known = [name for name in names or [first] if name in HIGHER_IS_BETTER]
    known.sort(key=lambda name: name == "per_class")  # of mask.per_class.dice it says nothing
    return HIGHER_IS_BETTER[known[0]] if known else None
