"""Several runs beside each other: what is set in bold is the best, and only where the runs can be compared."""

import math
import re

import pytest
from helpers.past_runs import past_run, record

from fastmtl.report import render_comparison
from fastmtl.tasks import create_task
from fastmtl.utils.metric_directions import HIGHER_IS_BETTER, direction_of, directions_of

KINDS = {
    "binary_segmentation": {},
    "multilabel_segmentation": {"structures": ["a", "b"]},
    "multiclass_segmentation": {"structures": ["none", "a"]},
    "universal_segmentation": {},
    "auxiliary_segmentation": {},
    "classification": {"class_names": ["a", "b", "c"]},
    "binary_classification": {"class_names": ["a", "b"]},
    "regression": {},
    "bounding_box": {},
    "reconstruction": {},
    "contrastive": {},
}


def _runs(*values, metric="mae", task="size", **options):
    return [past_run({task: {metric: value}}, name=f"r{place}", **options) for place, value in enumerate(values)]


def _bold(runs):
    """Run -> its cells in bold."""
    rows = re.findall(r"<tr><td>(.*?)</tr>", render_comparison(runs).split("<h2>Scores")[1].split("</table>")[0])
    return {row.partition("</td>")[0]: re.findall(r'class="number best">(.*?)<', row) for row in rows}


@pytest.mark.parametrize(
    ("metric", "values", "bold"),
    [
        ("mae", (2.0, 1.0, 3.0), {"r1": ["1.000"]}),
        ("rmse", (0.5, 0.25), {"r1": ["0.250"]}),
        ("r2", (-0.5, -0.25, 0.0), {"r2": ["0.000"]}),
        ("dice", (0.5, 0.75), {"r1": ["0.750"]}),
        ("mae", (1.0, 1.0, 3.0), {"r0": ["1.000"], "r1": ["1.000"]}),
        ("dice", (0.75021, 0.75039, 0.5), {"r0": ["0.750"], "r1": ["0.750"]}),  # they read alike
        ("dice", (0.75, 0.75), {}),
        ("dice", (0.75, None), {}),
        ("dice", (math.nan, 0.5, 0.25), {"r1": ["0.500"]}),
        ("dice", (math.nan, None), {}),
        ("mae", (math.inf, 2.0, 1.0), {"r2": ["1.000"]}),
        ("surface", (1.0, 2.0), {}),
    ],
)
def test_the_best_is_bold_whichever_way_the_metric_points(metric, values, bold):
    runs = _runs(*values, metric=metric)
    assert {name: cells for name, cells in _bold(runs).items() if cells} == bold
    page = render_comparison(runs)
    assert ("is bold" in page) == bool(bold)
    assert ("less is better" in page) == (metric in ("mae", "rmse"))


def test_a_run_says_which_way_its_own_metrics_point():
    said = {"higher_is_better": {"size": {"surface": False}}}
    assert _bold(_runs(2.0, 1.0, metric="surface", summary=said)) == {"r0": [], "r1": ["1.000"]}
    unsaid = {"higher_is_better": {"size": {}}}
    assert not any(_bold(_runs(2.0, 1.0, metric="dice", summary=unsaid)).values()), "what the run leaves out is unknown"
    other = {"higher_is_better": {"size": {"dice": False}}}
    apart = [*_runs(2.0, metric="dice"), *_runs(2.0, 1.0, metric="dice", summary=other)[1:]]
    assert not any(_bold(apart).values()), "two runs say the opposite"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patients": ("P1", "P3")}, "held out different patients"),
        ({"images": 5}, "the same patients, but not the same images"),
        ({"facts": {"data": "elsewhere"}}, "read different data"),
        ({"held_out": ["a", "c"]}, "the same patients, but not the same images"),
    ],
)
def test_runs_on_other_images_are_warned_of_and_nothing_is_bold(change, said):
    fields = {"held_out": ["a", "b"]}
    runs = [*_runs(1.0, **fields), *_runs(1.0, 2.0, **fields | change)[1:]]
    page = render_comparison(runs)
    assert said in page
    assert "is bold" not in page
    assert "All runs held out the same" not in page
    assert not any(_bold(runs).values())


def test_a_task_that_is_scored_in_another_way_is_not_compared():
    runs = [
        past_run(
            {"mask": {"dice": dice}, "kind": {"accuracy": dice}},
            name=f"r{place}",
            config={"tasks": {"mask": {"kind": "binary_segmentation", "empty": empty}}},
        )
        for place, (dice, empty) in enumerate([(0.5, "one"), (0.75, "skip")])
    ]
    assert _bold(runs) == {"r0": [], "r1": ["0.750"]}, "of kind alone"


def test_runs_of_other_tasks_stand_beside_each_other():
    runs = [past_run({"mask": {"dice": 0.5}}, name="a"), past_run({"size": {"mae": 2.0}}, name="b")]
    page = render_comparison(runs)
    assert not any(_bold(runs).values())
    assert "mask: Dice" in page
    assert "size: MAE, less is better" in page


def test_one_run_that_is_left_is_not_the_best_of_any():
    page = render_comparison(_runs(1.0))
    assert "Comparison of 1 run" in page
    assert "nothing to compare" in page
    assert "same patients" not in page
    assert "There is only one recipe" in page
    assert not any(_bold(_runs(1.0)).values())


def test_folds_of_images_are_not_said_to_share_patients():
    config = {"data": {"group_by": "tile"}}
    assert "held out the same images" in render_comparison(_runs(1.0, 2.0, config=config))


def test_recipes_that_cannot_be_read_are_not_said_to_be_alike():
    runs = _runs(1.0, 2.0)
    for run in runs:
        run.config = {}
    assert "every option is the same" not in render_comparison(runs)


def test_notices_of_each_run_are_counted():
    runs = [
        past_run({}, name=name, summary={"notices": notices}) for name, notices in (("a", ["odd", "odder"]), ("b", []))
    ]
    row = "<th scope=row>notices</th><td>2, on its own report</td><td>none</td>"
    assert row in render_comparison(runs)
    assert "notices" not in render_comparison(runs[1:])


def test_names_are_escaped_in_a_comparison():
    evil = '"><img src=x>'
    scores = {evil: {evil: 0.5, "dice": 0.5}}
    runs = [
        past_run(scores, name=f"{evil}{n}", config={"name": evil, evil: n}, records=[record(1, scores)])
        for n in range(2)
    ]
    page = render_comparison(runs)
    assert "<img" not in page
    assert "&quot;&gt;&lt;img" in page


@pytest.mark.parametrize("kind", KINDS)
def test_the_known_directions_are_those_of_the_tasks_metrics(kind):
    task = create_task(kind, "t", 0, **KINDS[kind])
    metrics = {*task.metrics(), *task.higher_is_better}
    pointing = {name for name in metrics if HIGHER_IS_BETTER.get(name, True) is not None}
    assert set(directions_of([task])["t"]) == pointing, "each metric of ours points somewhere, or is known not to"
    for name, metric in task.metrics().items():
        if metric.higher_is_better is not None:
            assert HIGHER_IS_BETTER[name] == metric.higher_is_better, name


def test_a_task_declares_its_own():
    class Distance:
        name, higher_is_better = "edge", {"surface": False}

        def metrics(self):
            return {"surface": object(), "other": object()}

    assert directions_of([Distance()]) == {"edge": {"surface": False}}
    assert direction_of("t.per_class.mae.x") is False
    assert direction_of("t.per_class.x") is True
    assert direction_of("t.per_class.false_positives.x") is False
    assert direction_of("t.per_class.fp_to_fn.x") is None
    assert direction_of("test.t.rmse") is False
