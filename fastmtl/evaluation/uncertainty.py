"""Intervals over patients, and means over patients, of the scores of one run: "patients" in summary.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..utils.json_toml import JsonMapping, JsonObject
from ..utils.score_names import set_and_task
from .bootstrap import Interval, Statistic, intervals, mean_over_patients
from .statistics import checked_statistic, metric_names, patient_of

_RESAMPLES = 2_000
# Metrics whose mean over the images of one patient means something; the others compare patients or classes.
_PER_PATIENT = ("dice", "jaccard", "accuracy", "pixel_accuracy", "iou", "mae")


def over_patients(lines: Sequence[JsonMapping], tasks: Mapping[str, JsonMapping]) -> JsonObject:
    """{"unit", "count", "intervals": {task: {metric: [low, high]}}, "means": {task: {metric: mean over patients}}}.

    Metrics of classes and groups have dotted names. A metric that does not follow from single images has neither.

    Args:
        lines: of evaluation.jsonl.
        tasks: task -> metrics of the same images, as in summary.json.
    """
    patients = {patient_of(line) for line in lines}
    known: dict[tuple[str, str], Statistic] = {}
    for task, metrics in tasks.items():
        of_set, name = set_and_task(task)
        own = [line for line in lines if not of_set or str(line["id"]).startswith(f"{of_set}/")]
        for metric, value in metric_names(metrics).items():
            if (found := checked_statistic(own, name, metric, value)) is not None:
                known[task, metric] = found
    drawn = intervals({f"{task}\n{metric}": [one] for (task, metric), one in known.items()}, _RESAMPLES)
    spans: dict[str, dict[str, Interval]] = {}
    means: dict[str, dict[str, float]] = {}
    for (task, metric), one in known.items():
        if (interval := drawn.get(f"{task}\n{metric}")) is not None:
            spans.setdefault(task, {})[metric] = interval
        if metric in _PER_PATIENT and not math.isnan(mean := mean_over_patients(one)):
            means.setdefault(task, {})[metric] = mean
    unit = "image" if len(patients) == len(lines) else "patient"
    return {"unit": unit, "count": len(patients), "intervals": spans, "means": means}
