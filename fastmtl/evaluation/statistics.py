"""Scores as functions of the patients that count, from the per-image results of a run (evaluation.jsonl).

Every score that is a function of sums over images is kept as its sums for each patient, so that a resample costs one
matrix product; AUROC is kept as the number of correctly ordered pairs of images for each pair of patients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..utils.json_toml import JsonMapping
from .bootstrap import Floats, Statistic, mean_of

_MOST_PATIENTS = 2_000  # of an AUROC, whose table has a cell for each pair of patients
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class OfSums:
    """A function of sums over images: sums float64 [p, k] -> `value(counts @ sums)` [R]."""

    patients: Sequence[str]
    sums: Floats
    value: Callable[[Floats], Floats]

    def __call__(self, counts: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.value(counts @ self.sums)


@dataclass(frozen=True)
class Auroc:
    """Area under the ROC curve of one class against the others; ties count half.

    Attributes:
        ordered: float64 [p, p], pairs of an image with the class (first patient) that scores above one without it.
        there, rest: float64 [p], images with and without the class.
    """

    patients: Sequence[str]
    ordered: Floats
    there: Floats
    rest: Floats

    def __call__(self, counts: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return ((counts @ self.ordered) * counts).sum(1) / ((counts @ self.there) * (counts @ self.rest))


@dataclass(frozen=True)
class MeanOf:
    """The mean of the parts that a resample defines."""

    patients: Sequence[str]
    parts: Sequence[Statistic]

    def __call__(self, counts: Floats) -> Floats:
        stacked = np.stack([part(counts) for part in self.parts])
        known = np.isfinite(stacked)
        with np.errstate(invalid="ignore"):
            return np.where(known, stacked, 0.0).sum(0) / known.sum(0)


def patient_of(line: JsonMapping) -> str:
    """Whom to resample: "cluster" if the split divides patients (by image or by day), else the group of the split."""
    return str(line.get("cluster", line.get("patient", line["id"])))


def statistic_of(lines: Sequence[JsonMapping], task: str, metric: str) -> Statistic | None:
    """The statistic of a metric, named as in summary.json ("per_class.Polyp"); None if the lines cannot give it.

    Args:
        lines: of evaluation.jsonl.
    """
    having = [line for line in lines if task in line.get("tasks", {})]
    try:
        entries = [line["tasks"][task] for line in having]
        found = _columns(entries, metric)
        if found is None:
            return None
        groups = [patient_of(line) for line in having]
        patients = sorted(set(groups))
        place = {name: number for number, name in enumerate(patients)}
        return found(patients, np.array([place[name] for name in groups]))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):  # lines of other versions, edited files
        return None


def checked_statistic(lines: Sequence[JsonMapping], task: str, metric: str, value: object) -> Statistic | None:
    """`statistic_of`, if it gives the run's own `value` for all images; None for scores that are not of single images,
    such as a Dice over batches, and for those of runs of earlier versions."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    found = statistic_of(lines, task, metric)
    if found is None or not math.isclose(mean_of([found]), value, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
        return None
    return found


_Build = Callable[[Sequence[str], np.ndarray], Statistic]


def _columns(entries: Sequence[JsonMapping], metric: str) -> _Build | None:
    if not entries:
        return None
    first = entries[0]
    if "class" in first:
        return _of_classes(entries, metric)
    if "dice" in first:
        return _of_maps(entries, metric)
    if metric == "iou":
        return _mean([entry["iou"] for entry in entries]) if "iou" in first else None
    return _of_numbers(entries, metric) if "value" in first and "iou" not in first else None


def _mean(values: Sequence[float], weights: Sequence[float] | None = None) -> _Build:
    """The weighted mean over images; NaN values do not count."""
    column = np.array(values, dtype=np.float64)
    weight = np.ones(len(column)) if weights is None else np.array(weights, dtype=np.float64)
    weight = np.where(np.isnan(column), 0.0, weight)
    table: Floats = np.stack([np.where(weight > 0, column, 0.0) * weight, weight], 1)
    return lambda patients, index: OfSums(patients, _summed(table, index, len(patients)), lambda s: s[:, 0] / s[:, 1])


def _summed(table: Floats, index: np.ndarray, count: int) -> Floats:
    """[n, k] -> [p, k]."""
    return np.stack([np.bincount(index, column, count) for column in table.T], 1).astype(np.float64)


def _of_classes(entries: Sequence[JsonMapping], metric: str) -> _Build | None:
    right = np.array([entry["class"] == entry["predicted"] for entry in entries], dtype=np.float64)
    true = [str(entry["class"]) for entry in entries]
    names = list(entries[0].get("probabilities") or sorted(set(true)))
    kind, _, name = metric.partition(".")
    one = {"sensitivity": names[-1], "specificity": names[0]} if len(names) == 2 else {}
    if kind == "accuracy":
        return _mean(right.tolist())
    if kind == "per_class" or kind in one:
        wanted = one.get(kind, name)
        return _mean([hit if label == wanted else math.nan for hit, label in zip(right, true, strict=True)])
    if kind == "balanced_accuracy":
        is_class = np.array([[label == name for name in names] for label in true], dtype=np.float64)
        table = np.concatenate([is_class * right[:, None], is_class], 1)
        count = len(names)

        def recall(sums: Floats) -> Floats:
            there = sums[:, count:] > 0
            shares = np.where(there, sums[:, :count] / np.where(there, sums[:, count:], 1.0), 0.0)
            return shares.sum(1) / there.sum(1)

        return lambda patients, index: OfSums(patients, _summed(table, index, len(patients)), recall)
    if kind == "auroc":
        return _auroc(entries, names[1:] if len(names) == 2 else names, true)
    return None


def _auroc(entries: Sequence[JsonMapping], names: Sequence[str], true: Sequence[str]) -> _Build:
    shares = np.array([[entry["probabilities"][name] for name in names] for entry in entries], dtype=np.float64)

    def build(patients: Sequence[str], index: np.ndarray) -> Statistic:
        if len(patients) > _MOST_PATIENTS:
            raise ValueError("too many patients for a table of pairs")
        parts = []
        for column, name in enumerate(names):
            there = np.array([label == name for label in true])
            if there.any() and not there.all():
                parts.append(_area(patients, index, shares[:, column], there))
        return MeanOf(patients, parts)

    return build


def _area(patients: Sequence[str], index: np.ndarray, scores: Floats, there: np.ndarray) -> Auroc:
    count = len(patients)
    order = np.argsort(scores[~there], kind="stable")
    rest, owners = scores[~there][order], index[~there][order]
    below = np.zeros((len(rest) + 1, count))  # of the images without the class in order: how many are each patient's
    below[1:] = np.cumsum(np.eye(count)[owners], 0)
    places = [np.searchsorted(rest, scores[there], side) for side in ("left", "right")]
    beaten = (below[places[0]] + below[places[1]]) / 2
    ordered = np.zeros((count, count))
    np.add.at(ordered, index[there], beaten)
    totals = (np.bincount(index[which], minlength=count).astype(np.float64) for which in (there, ~there))
    return Auroc(patients, ordered, *totals)


def _of_maps(entries: Sequence[JsonMapping], metric: str) -> _Build | None:
    kind, _, rest = metric.partition(".")
    weights = [entry.get("structures", 1) for entry in entries]
    if kind in ("dice", "jaccard"):
        return _mean([entry[kind] for entry in entries], weights)
    if kind == "pixel_accuracy":
        table = np.array([entry["pixels"] for entry in entries], dtype=np.float64)
        return lambda patients, index: OfSums(
            patients, _summed(table, index, len(patients)), lambda sums: sums[:, 0] / sums[:, 1]
        )
    if kind == "per_class" and rest.startswith("fp_to_fn."):
        name = rest.partition(".")[2]
        table = np.array([entry["counts"][name] for entry in entries], dtype=np.float64)
        return lambda patients, index: OfSums(
            patients, _summed(table, index, len(patients)), lambda sums: sums[:, 1] / sums[:, 2]
        )
    if kind == "per_group":
        score, _, name = rest.partition(".")
        members = [entry[score] if entry["group"] == name else math.nan for entry in entries]
        return _mean(members, weights)
    return None


def _of_numbers(entries: Sequence[JsonMapping], metric: str) -> _Build | None:
    true, found = (np.array([entry[key] for entry in entries], dtype=np.float64) for key in ("value", "predicted"))
    true, found = true.reshape(len(entries), -1), found.reshape(len(entries), -1)
    errors = true - found
    if metric == "mae":
        return _mean(np.abs(errors).mean(1).tolist())
    if metric == "rmse":
        table = np.stack([(errors**2).mean(1), np.ones(len(errors))], 1)
        return lambda patients, index: OfSums(
            patients, _summed(table, index, len(patients)), lambda sums: np.sqrt(sums[:, 0] / sums[:, 1])
        )
    if metric != "r2":
        return None
    varied = np.ptp(true, 0) > 0
    true, errors = (true - true.mean(0))[:, varied], errors[:, varied]  # centred, so that no digits cancel
    table = np.concatenate([np.ones((len(true), 1)), true, true**2, errors**2], 1)
    size = true.shape[1]

    def r2(sums: Floats) -> Floats:
        count, total, squares, wrong = sums[:, :1], *(sums[:, 1 + i * size : 1 + (i + 1) * size] for i in range(3))
        deviations = squares - total**2 / count
        return np.where(deviations > 1e-9 * squares, 1 - wrong / deviations, np.nan).mean(1)

    return lambda patients, index: OfSums(patients, _summed(table, index, len(patients)), r2)


def metric_names(metrics: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """The metrics of a task in summary.json that are numbers, with dotted names for nested ones."""
    found: dict[str, object] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found |= metric_names(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
