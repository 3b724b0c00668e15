"""Intervals over patients against a slow plain reference, and cases whose answer is known."""

import math

import numpy as np
import pytest
from helpers.per_image import class_lines
from sklearn import metrics as sklearn

from fastmtl.evaluation import bootstrap
from fastmtl.evaluation.statistics import checked_statistic, metric_names, patient_of, statistic_of
from fastmtl.evaluation.uncertainty import over_patients


def _accuracy(lines):
    return np.mean([line["tasks"]["kind"]["class"] == line["tasks"]["kind"]["predicted"] for line in lines])


def _balanced(lines):
    entries = [line["tasks"]["kind"] for line in lines]
    recalls = []
    for name in {entry["class"] for entry in entries}:
        recalls.append(np.mean([entry["predicted"] == name for entry in entries if entry["class"] == name]))
    return np.mean(recalls)


def _auroc(lines):
    entries = [line["tasks"]["kind"] for line in lines]
    areas = []
    for name in entries[0]["probabilities"]:
        truth = [entry["class"] == name for entry in entries]
        if any(truth) and not all(truth):
            areas.append(sklearn.roc_auc_score(truth, [entry["probabilities"][name] for entry in entries]))
    return np.mean(areas)


PLAIN = {"accuracy": _accuracy, "balanced_accuracy": _balanced, "auroc": _auroc}


def _copies(lines, patients, counts):
    """The lines of a resample, written out."""
    return [
        line
        for name, count in zip(patients, counts, strict=True)
        for line in lines
        if patient_of(line) == name
        for _ in range(int(count))
    ]


@pytest.mark.parametrize("metric", PLAIN)
def test_a_resampled_score_is_that_of_the_images_written_out(metric):
    lines = class_lines(9)
    statistic = statistic_of(lines, "kind", metric)
    assert statistic is not None
    counts = next(bootstrap.resamples(9, 40))
    slow = [PLAIN[metric](_copies(lines, statistic.patients, row)) for row in counts]
    np.testing.assert_allclose(statistic(counts), slow, atol=1e-12)
    assert bootstrap.mean_of([statistic]) == pytest.approx(PLAIN[metric](lines))


def _map_lines(patients=6, per_patient=3, seed=1):
    random = np.random.default_rng(seed)
    lines = []
    for number in range(patients * per_patient):
        entry = {"dice": random.random(), "jaccard": random.random(), "group": ("x", "y")[number % 2]}
        entry |= {"pixels": [int(random.integers(50)), 50 + number], "structures": int(random.integers(1, 4))}
        size = {"value": float(1000 + random.random()), "predicted": float(1000 + random.random())}
        tasks = {"mask": entry, "size": size, "box": {"iou": random.random(), "value": [0.5], "predicted": [0.5]}}
        lines.append({"id": str(number), "patient": f"p{number % patients}", "tasks": tasks})
    return lines


def _column(lines, task, key):
    return np.array([line["tasks"][task][key] for line in lines], dtype=float)


def _mean_dice(lines):
    return np.average(_column(lines, "mask", "dice"), weights=_column(lines, "mask", "structures"))


def _group(lines):
    lines = [line for line in lines if line["tasks"]["mask"]["group"] == "x"]
    return np.average(_column(lines, "mask", "jaccard"), weights=_column(lines, "mask", "structures"))


MAPS = {
    "mask.dice": _mean_dice,
    "mask.per_group.jaccard.x": _group,
    "mask.pixel_accuracy": lambda lines: np.divide(*_column(lines, "mask", "pixels").sum(0)),
    "box.iou": lambda lines: _column(lines, "box", "iou").mean(),
    "size.mae": lambda lines: np.abs(_column(lines, "size", "value") - _column(lines, "size", "predicted")).mean(),
    "size.rmse": lambda lines: sklearn.root_mean_squared_error(
        _column(lines, "size", "value"), _column(lines, "size", "predicted")
    ),
    "size.r2": lambda lines: sklearn.r2_score(_column(lines, "size", "value"), _column(lines, "size", "predicted")),
}


@pytest.mark.parametrize("key", MAPS)
def test_scores_of_masks_boxes_and_numbers(key):
    lines = _map_lines()
    statistic = statistic_of(lines, *key.split(".", 1))
    assert statistic is not None
    counts = next(bootstrap.resamples(6, 30))
    slow = [MAPS[key](_copies(lines, statistic.patients, row)) for row in counts]
    np.testing.assert_allclose(statistic(counts), slow, atol=1e-9)


def test_an_interval_is_the_percentiles_of_the_resampled_scores():
    lines = class_lines(12)
    statistic = statistic_of(lines, "kind", "accuracy")
    drawn = np.concatenate(list(bootstrap.resamples(12, 500)))
    assert np.all(drawn.sum(1) == 12)
    slow = [_accuracy(_copies(lines, statistic.patients, row)) for row in drawn]
    found = bootstrap.intervals({"it": [statistic]}, 500)["it"]
    assert found == pytest.approx(tuple(np.quantile(slow, (0.025, 0.975))))


def test_rows_that_answer_alike_do_not_differ():
    lines = class_lines(20)
    pair = ([statistic_of(lines, "kind", "accuracy")], [statistic_of(list(reversed(lines)), "kind", "accuracy")])
    found = bootstrap.differences({"it": pair})["it"]
    assert found.value == 0
    assert found.interval == (0, 0)
    assert found.p == 1
    assert found.num_patients == 20


def test_a_clear_difference_excludes_0_and_one_of_few_images_does_not():
    better, worse = (class_lines(40, right=right, seed=3) for right in (0.95, 0.3))
    accuracy = [[statistic_of(lines, "kind", "accuracy")] for lines in (better, worse)]
    found = bootstrap.differences({"it": (accuracy[0], accuracy[1])})["it"]
    assert 0 < found.interval.low < found.value < found.interval.high
    assert found.p < 0.001
    opposite = bootstrap.differences({"it": (accuracy[1], accuracy[0])})["it"]
    assert opposite.interval == pytest.approx((-found.interval.high, -found.interval.low))
    near = [[statistic_of(class_lines(5, right=0.6, seed=seed), "kind", "accuracy")] for seed in (1, 2)]
    same = bootstrap.differences({"it": (near[0], near[1])})["it"]
    assert same.interval.low <= 0 <= same.interval.high
    assert same.p > 0.05


def test_what_both_rows_find_difficult_cancels_out():
    """Every other patient is always wrong in both rows, and the second row has one more error per patient: unpaired,
    the interval would be as wide as the rows' own; paired it is a point."""
    rows = []
    for missed in (0, 1):
        lines = class_lines(30, 4, right=1.0)
        for number, line in enumerate(lines):
            entry = line["tasks"]["kind"]
            hard = number // 4 % 2 == 0
            entry["predicted"] = "none" if number % 4 < (hard + missed) else entry["class"]
        rows.append([statistic_of(lines, "kind", "accuracy")])
    found = bootstrap.differences({"it": (rows[1], rows[0])})["it"]
    assert found.interval == pytest.approx((-0.25, -0.25))
    own = bootstrap.intervals({"it": rows[0]})["it"]
    assert own.high - own.low > 0.05


def test_runs_are_averaged_and_a_fold_without_a_drawn_patient_is_passed_over():
    folds = [class_lines(3, seed=seed) for seed in (0, 1)]
    for line in folds[1]:
        line["patient"] += "b"
    statistics = [statistic_of(lines, "kind", "accuracy") for lines in folds]
    assert bootstrap.mean_of(statistics) == pytest.approx(np.mean([_accuracy(lines) for lines in folds]))
    found = bootstrap.intervals({"it": statistics})["it"]
    assert 0 <= found.low < found.high <= 1


def test_one_patient_has_no_interval():
    assert bootstrap.intervals({"it": [statistic_of(class_lines(1), "kind", "accuracy")]}) == {}


def test_images_of_one_patient_are_drawn_together():
    """Ten patients whose hundred images agree are ten observations, not a thousand."""
    lines = class_lines(10, 100, right=1.0)
    for line in lines:
        if line["patient"] in ("p0", "p1", "p2", "p3"):
            line["tasks"]["kind"]["predicted"] = "none"
    together = over_patients(lines, {"kind": {"accuracy": 0.6}})
    alone = over_patients([line | {"cluster": line["id"]} for line in lines], {"kind": {"accuracy": 0.6}})
    assert (together["unit"], together["count"]) == ("patient", 10)
    assert (alone["unit"], alone["count"]) == ("image", 1000)
    widths = [high - low for low, high in (one["intervals"]["kind"]["accuracy"] for one in (together, alone))]
    assert widths[0] > 5 * widths[1]


def test_means_over_patients_weigh_patients_alike():
    lines = class_lines(2, 1, right=1.0) + [line | {"patient": "p9"} for line in class_lines(1, 8, right=1.0, seed=5)]
    for line in lines[2:]:
        line["tasks"]["kind"]["predicted"] = "none"
    found = over_patients(lines, {"kind": {"accuracy": 0.2}})
    assert found["means"] == {"kind": {"accuracy": pytest.approx(2 / 3)}}


def test_a_score_that_is_not_of_single_images_has_no_interval():
    """A Dice over batches, or of a run whose files were edited: the images do not give the summary's value."""
    lines = _map_lines()
    assert checked_statistic(lines, "mask", "dice", float(_mean_dice(lines))) is not None
    assert checked_statistic(lines, "mask", "dice", float(_mean_dice(lines)) - 0.05) is None
    for value in (None, math.nan, "0.5"):
        assert checked_statistic(lines, "mask", "dice", value) is None
    assert statistic_of(lines, "mask", "surface") is None
    assert statistic_of(lines, "nothing", "dice") is None
    assert statistic_of([{"id": "a", "tasks": {"mask": {"dice": "x"}}}], "mask", "dice") is None


def test_names_of_nested_metrics():
    assert metric_names({"a": 1, "b": {"c": 2, "d": {"e.f": None}}}) == {"a": 1, "b.c": 2, "b.d.e.f": None}


def test_holm_is_never_less_than_the_p_itself():
    found = bootstrap.holm({"a": 0.001, "b": 0.5, "c": 0.9})
    assert found == {"a": pytest.approx(0.003), "b": 1.0, "c": 1.0}
