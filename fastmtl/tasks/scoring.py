"""Scores of segmentations: how empty masks score, how scores are averaged, and scores per class and per group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from torch import Tensor

from ..protocols import Batch
from ..utils.json_toml import JsonObject
from .base import by_name
from .grouping import Grouping

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from .metrics import Overlap

SCORES = ("dice", "jaccard")
EMPTY: dict[str, float | None] = {"one": 1.0, "zero": 0.0, "skip": None}
"""The tasks' option `empty` -> the score of an empty prediction of an empty mask; None excludes the image."""

Aggregate = str | Mapping[str, str]


class Scoring:
    """`dice` and `jaccard` of a task's structures, by its options.

    Args:
        task: its name, for messages.
        names: the C structures that are scored.
        grouping: groups with their own scores.
        empty: a key of `EMPTY`.
        aggregate: "image" or "batch", or a mapping from "dice" and "jaccard" to one of these; see `metrics.Overlap`.

    Raises:
        ValueError: an unknown `empty` or `aggregate`.
    """

    def __init__(self, task: str, names: Sequence[str], grouping: Grouping, empty: str, aggregate: Aggregate) -> None:
        if empty not in EMPTY:
            raise ValueError(f"task {task!r}: `empty` must be one of {', '.join(EMPTY)}; got {empty!r}.")
        how = aggregate if isinstance(aggregate, Mapping) else {"dice": aggregate}
        if not set(how) <= set(SCORES) or not set(how.values()) <= {"image", "batch"}:
            raise ValueError(
                f"task {task!r}: `aggregate` must be 'image' or 'batch', or a mapping of dice and jaccard to them; "
                f"got {aggregate!r}."
            )
        self.names, self.grouping = tuple(names), grouping
        self.empty, self.aggregate = EMPTY[empty], aggregate

    def metrics(self) -> MetricCollection:
        """A torchmetrics.MetricCollection of both scores."""
        from .metrics import segmentation_metrics

        return segmentation_metrics(
            len(self.names), groups=len(self.grouping), empty=self.empty, aggregate=self.aggregate
        )

    def update(self, metrics: MetricCollection, found: Tensor, true: Tensor, batch: Batch, rows: Tensor) -> None:
        """Add masks [N, C, H, W], bool or 0/1 integers, of the N samples of `batch` that `rows`, bool [B], marks."""
        group = self.grouping.of(batch)
        for score in SCORES:
            metrics[score].update(found, true, None if group is None else group[rows])

    def apart(self, metrics: MetricCollection) -> JsonObject:
        """Both scores `per_class` if there are several structures, and `per_group` if there are several groups."""
        found: JsonObject = {}
        overlaps = {score: cast("Overlap", metrics[score]) for score in SCORES}
        if len(self.names) > 1:
            found["per_class"] = {score: by_name(self.names, one.per_channel()) for score, one in overlaps.items()}
        if len(self.grouping) > 1:
            names = self.grouping.names
            found["per_group"] = {score: by_name(names, one.per_group()) for score, one in overlaps.items()}
        return found
