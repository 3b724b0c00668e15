"""Metrics of the tasks, three of them missing from torchmetrics: overlap with a defined score for empty masks, false
positive pixels for each false negative one, and R^2 for targets far from 0.

torchmetrics' DiceScore always scores an empty prediction of an empty mask as 0; its R2Score subtracts sums of squares,
and float32 then loses a spread that is small compared with the values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..utils.torchvision_guard import make_torchvision_importable

make_torchvision_importable()  # torchmetrics imports torchvision if it is installed

import torchmetrics  # noqa: E402
from torchmetrics.classification import (  # noqa: E402
    BinaryAccuracy,
    BinaryAUROC,
    BinaryRecall,
    BinarySpecificity,
    MulticlassAccuracy,
    MulticlassAUROC,
)

_SCORES = ("dice", "jaccard")


def segmentation_metrics(
    channels: int = 1,
    *,
    groups: int = 1,
    empty: float | None = 1.0,
    aggregate: str | Mapping[str, str] = "image",
) -> torchmetrics.MetricCollection:
    """`dice` and `jaccard` of the foreground; see `Overlap`. `aggregate` may map each score to its own mode."""
    how = {name: aggregate if isinstance(aggregate, str) else aggregate.get(name, "image") for name in _SCORES}
    if not isinstance(aggregate, str) and (unknown := sorted(set(aggregate) - set(_SCORES))):
        raise ValueError(f"`aggregate` must be of {' and '.join(_SCORES)}; got {unknown[0]!r}.")
    scores = {name: Overlap(name, channels, groups=groups, empty=empty, aggregate=how[name]) for name in _SCORES}
    return _apart(scores)


def classification_metrics(num_classes: int) -> torchmetrics.MetricCollection:
    """`accuracy`; for each class `per_class`, the accuracy within it, and `auroc`, one against the rest; from
    probabilities [B, C]. A class without samples scores 0 in both; so does `auroc` if there is only one class."""
    return _apart(
        {
            "accuracy": MulticlassAccuracy(num_classes, average="micro"),
            "per_class": MulticlassAccuracy(num_classes, average="none"),
            "auroc": MulticlassAUROC(num_classes, average="none"),
        }
    )


def binary_metrics(threshold: float = 0.5) -> torchmetrics.MetricCollection:
    """`accuracy`, `sensitivity`, `specificity` at the threshold, and `auroc`; from probabilities."""
    return _apart(
        {
            "accuracy": BinaryAccuracy(threshold),
            "sensitivity": BinaryRecall(threshold),
            "specificity": BinarySpecificity(threshold),
            "auroc": BinaryAUROC(),
        }
    )


def regression_metrics(size: int = 1) -> torchmetrics.MetricCollection:
    """`mae` and `rmse` in the target's unit, and `r2`; for values [B] or [B, size]."""
    return _apart(
        {
            "mae": _summed(torchmetrics.MeanAbsoluteError()),
            "rmse": _summed(torchmetrics.MeanSquaredError(squared=False)),
            "r2": RSquared(size),
        }
    )


def error_metrics() -> torchmetrics.MetricCollection:
    """`rmse`."""
    return _apart({"rmse": _summed(torchmetrics.MeanSquaredError(squared=False))})


def share_metrics(name: str) -> torchmetrics.MetricCollection:
    """The mean of values 0 and 1, under `name`."""
    return _apart({name: _summed(torchmetrics.MeanMetric())})


def box_metrics() -> torchmetrics.MetricCollection:
    """`iou`: mean over images."""
    return _apart({"iou": BoxOverlap()})


def _summed(metric: torchmetrics.Metric) -> torchmetrics.Metric:
    """`metric` with float64 sums: a float32 sum over an epoch's pixels ignores further ones beyond 16.8 million."""
    return metric.set_dtype(torch.float64)


def _apart(metrics: Mapping[str, torchmetrics.Metric]) -> torchmetrics.MetricCollection:
    # torchmetrics merges metrics whose states are equal after the first batch; Dice and Jaccard of a perfect batch are.
    return torchmetrics.MetricCollection({**metrics}, compute_groups=False)


def overlap(preds: Tensor, target: Tensor, score: str, empty: float = 1.0) -> Tensor:
    """Foreground "dice" or "jaccard" [B, C] float64 of masks [B, C, *spatial]; `empty` if both masks are empty."""
    return _score(_sums(preds, target), score, empty)


def box_overlap(preds: Tensor, target: Tensor) -> float:
    """Mean intersection over union of boxes float [B, 4]: centre x, centre y, width, height."""
    return _box_overlaps(preds, target).mean().item()


def _box_overlaps(preds: Tensor, target: Tensor) -> Tensor:
    (x, y, w, h), (x2, y2, w2, h2) = preds.double().unbind(1), target.double().unbind(1)
    across = (torch.minimum(x + w / 2, x2 + w2 / 2) - torch.maximum(x - w / 2, x2 - w2 / 2)).clamp(min=0)
    down = (torch.minimum(y + h / 2, y2 + h2 / 2) - torch.maximum(y - h / 2, y2 - h2 / 2)).clamp(min=0)
    shared = across * down
    union = w * h + w2 * h2 - shared
    return torch.where(union > 0, shared / union, 0.0)


def _sums(preds: Tensor, target: Tensor) -> list[Tensor]:
    """|A and B|, |A| and |B| of masks [B, C, *spatial], int64 [B, C] each."""
    a, b = preds.bool().flatten(2), target.bool().flatten(2)
    return [(a & b).sum(2), a.sum(2), b.sum(2)]


def _score(sums: Sequence[Tensor], score: str, empty: float) -> Tensor:
    shared, predicted, true = sums
    size = predicted + true  # |A| + |B|
    ratio = 2 * shared / size if score == "dice" else shared / (size - shared)
    return torch.where(size == 0, empty, ratio.double())


class Overlap(torchmetrics.Metric):
    """Mean foreground Dice or Jaccard score of masks.

    Dice = 2 |A and B| / (|A| + |B|), Jaccard = |A and B| / |A or B|.

    Args:
        score: "dice" or "jaccard".
        channels: C of the masks; each structure is scored separately, and `compute` returns the mean.
        groups: number of groups of images (organs, classes) in `per_group`.
        empty: score of an empty prediction of an empty mask; None excludes images with an empty mask.
        aggregate: "image" scores each image and takes the mean; "batch" scores all pixels of a batch together.
    """

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(
        self,
        score: str = "dice",
        channels: int = 1,
        *,
        groups: int = 1,
        empty: float | None = 1.0,
        aggregate: str = "image",
    ):
        super().__init__()
        if score not in _SCORES:
            raise ValueError(f"`score` must be 'dice' or 'jaccard'; got {score!r}.")
        if aggregate not in ("image", "batch"):
            raise ValueError(f"`aggregate` must be 'image' or 'batch'; got {aggregate!r}.")
        self.score, self.empty, self.aggregate, self.groups = score, empty, aggregate, groups
        self.add_state("total", torch.zeros(groups, channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(groups, channels, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, group: Tensor | None = None) -> None:
        """Add masks [B, C, *spatial], bool or 0/1 integers, and each image's group, int64 [B]."""
        sums = _sums(preds, target)
        device = preds.device
        rows = torch.zeros(len(preds), dtype=torch.int64, device=device) if group is None else group
        if self.aggregate == "batch":
            sums = [each.new_zeros(self.total.shape).index_add_(0, rows, each) for each in sums]
            rows = torch.arange(self.groups, device=device)
            counted = (sums[1] + sums[2] > 0) | (self.groups == 1)
        else:
            counted = torch.ones_like(sums[0], dtype=torch.bool)
        if self.empty is None:
            counted = counted & (sums[2] > 0)
        scores = torch.where(counted, _score(sums, self.score, self.empty or 0.0), 0.0)
        self.total.index_add_(0, rows, scores)
        self.count.index_add_(0, rows, counted.long())

    def compute(self) -> Tensor:
        """NaN where no image was added."""
        return (self.total.sum() / self.count.sum()).float()

    def per_channel(self) -> Tensor:
        """float32 [C], over all ranks; NaN where nothing was added."""
        return self._means(0)

    def per_group(self) -> Tensor:
        """float32 [groups], likewise."""
        return self._means(1)

    def _means(self, over: int) -> Tensor:
        with self.sync_context(should_unsync=True):  # outside `compute` the states are this rank's alone
            return (self.total.sum(over) / self.count.sum(over)).float()


class FalsePixels(torchmetrics.Metric):
    """False positive pixels divided by false negative ones, of masks of C structures.

    Above 1 a structure is drawn too large or where there is none, below 1 too small or not at all.

    Args:
        channels: C of the masks.
    """

    full_state_update = False
    higher_is_better = None
    pixels: Tensor  # int64 [2, C]: false positives, false negatives
    images: Tensor

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.add_state("pixels", torch.zeros(2, channels, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add masks [B, C, *spatial], bool or 0/1 integers."""
        shared, predicted, true = (each.sum(0) for each in _sums(preds, target))
        self.pixels += torch.stack([predicted - shared, true - shared])
        self.images += len(preds)

    def compute(self) -> Tensor:
        """Of all structures together; NaN without false negatives."""
        positive, negative = self.pixels.sum(1)
        return _ratio(positive, negative)

    def per_channel(self) -> tuple[Tensor, Tensor, Tensor]:
        """False positives and false negatives, pixels per image, and their ratio: float32 [C] each, over all ranks."""
        with self.sync_context(should_unsync=True):
            positive, negative = self.pixels
            per_image = (self.pixels / self.images).float()
            return per_image[0], per_image[1], _ratio(positive, negative)


def _ratio(positive: Tensor, negative: Tensor) -> Tensor:
    return torch.where(negative > 0, positive / negative, torch.nan).float()


class RSquared(torchmetrics.Metric):
    """R^2 = 1 - sum of squared errors / sum of squared deviations of the targets from their mean; of [B, size] the mean
    over the columns that vary.

    Args:
        size: numbers a sample.

    Each batch's deviations are from its own mean, in float64, and batches and ranks are merged by their means (Chan et
    al. 1979): nothing large is subtracted from anything large.
    """

    full_state_update = False
    higher_is_better = True
    moments: Tensor  # float64 [4, size]: count, mean and squared deviations of the targets, squared errors

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.add_state("moments", torch.zeros(4, size, dtype=torch.float64), dist_reduce_fx=_merged)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add numbers [B] or [B, size]."""
        if len(target):
            found, wanted = (values.double().reshape(len(values), -1) for values in (preds, target))
            size = self.moments.shape[1]
            if not found.shape[1] == wanted.shape[1] == size:
                given = f"{list(preds.shape)} and {list(target.shape)}"
                raise ValueError(f"`preds` and `target` must have {size} numbers a sample, the `size`; got {given}.")
            mean = wanted.mean(0)
            squares = [(wanted - mean).square().sum(0), (wanted - found).square().sum(0)]
            batch = torch.stack([torch.full_like(mean, len(wanted)), mean, *squares])
            self.moments = _merged(torch.stack([self.moments, batch]))

    def compute(self) -> Tensor:
        """NaN of fewer than two samples, or of targets that are all equal."""
        count, mean, deviations, errors = self.moments
        # Equal targets may be off their mean by its last bits; different float32 ones are 1e-8 of it apart.
        varied = (count > 1) & (deviations > count * (1e-13 * mean).square())
        return (1 - errors / deviations)[varied].mean().float()


def _merged(parts: Tensor) -> Tensor:
    """`RSquared.moments` of all samples together, from those of parts [parts, 4, size]."""
    counts, means, deviations, errors = parts.unbind(1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count.clamp(min=1)
    between = counts * (means - mean).square()
    return torch.stack([count, mean, (deviations + between).sum(0), errors.sum(0)])


class BoxOverlap(torchmetrics.Metric):
    """Mean over images of intersection over union of boxes [B, 4]: centre x, centre y, width, height."""

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add boxes float [B, 4]."""
        self.total += _box_overlaps(preds, target).sum()
        self.count += len(preds)

    def compute(self) -> Tensor:
        """NaN where no image was added."""
        return (self.total / self.count).float()
