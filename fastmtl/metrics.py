"""Metrics torchmetrics lacks: overlap per image, with a stated answer for empty masks.

torchmetrics' DiceScore counts an empty prediction of an empty mask as 0 and offers no choice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .torchvision_guard import make_torchvision_importable

make_torchvision_importable()  # torchmetrics imports torchvision where it is installed

import torchmetrics  # noqa: E402
from torchmetrics.classification import MulticlassAccuracy  # noqa: E402


def segmentation_metrics() -> torchmetrics.MetricCollection:
    """`dice` and `jaccard`: means over images of the foreground's score."""
    # torchmetrics would take two metrics for one whose states are equal after the first batch, as both are at 0.
    scores = {"dice": ImageOverlap("dice"), "jaccard": ImageOverlap("jaccard")}
    return torchmetrics.MetricCollection(scores, compute_groups=False)  # type: ignore[arg-type]


def classification_metrics(num_classes: int) -> torchmetrics.MetricCollection:
    """`accuracy`, and `per_class`: the accuracy within each true class."""
    accuracies = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "per_class": MulticlassAccuracy(num_classes, average="none"),
    }
    return torchmetrics.MetricCollection(accuracies, compute_groups=False)  # type: ignore[arg-type]


def overlap(preds: Tensor, target: Tensor, score: str, empty: float = 1.0) -> Tensor:
    """Foreground "dice" or "jaccard" [B, C] float64 of masks [B, C, *spatial]; `empty` where both are empty."""
    a, b = preds.bool().flatten(2), target.bool().flatten(2)
    shared = (a & b).sum(2).double()
    size = a.sum(2).double() + b.sum(2).double()  # |A| + |B|
    return torch.where(size == 0, empty, 2 * shared / size if score == "dice" else shared / (size - shared))


class ImageOverlap(torchmetrics.Metric):
    """Mean over images of the foreground Dice or Jaccard score of two binary masks.

    Dice = 2 |A and B| / (|A| + |B|), Jaccard = |A and B| / |A or B|, per image and channel; `empty` is the score
    where both masks are empty.

    Args:
        score: "dice" or "jaccard".
        empty: score of an empty prediction of an empty mask, 1.0 or 0.0.
    """

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self, score: str = "dice", empty: float = 1.0):
        super().__init__()
        if score not in ("dice", "jaccard"):
            raise ValueError(f"`score` must be 'dice' or 'jaccard'; got {score!r}.")
        self.score, self.empty = score, empty
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add masks [B, C, *spatial], bool or 0/1 integers."""
        scores = overlap(preds, target, self.score, self.empty)
        self.total += scores.sum()
        self.count += scores.numel()

    def compute(self) -> Tensor:
        """NaN where no image was added."""
        return (self.total / self.count).float()
