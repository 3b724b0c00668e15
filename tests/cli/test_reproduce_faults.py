"""Tables of runs that lack something, diverged or are damaged; a folder that another process works in."""

import csv
import json
from math import isnan, nan

import pytest
from helpers.published import write_ebhi
from helpers.stages import TWO, recipe_of

from fastmtl import api, data
from fastmtl.builders import datasets
from fastmtl.builders.splits import split_of
from fastmtl.config import ConfigError
from fastmtl.reproduce import Score, delta_m, plan, reproduction, tables
from fastmtl.reproduce.plan import Result, RunKey
from fastmtl.reproduce.reproduction import reproduce
from fastmtl.reproduce.roc_figure import answers
from fastmtl.training.file_lock import locked
from fastmtl.training.run_dir import RunError


def _summary(**tasks):
    return {"tasks": {task: dict([pair]) for task, pair in tasks.items()}}


def _results():
    """pcgrad ran on the folds 0 and 1, one of its baselines on 0 alone, where everything is lower."""
    rows = {row.name: row for row in plan("mask2tasks", rows=["pcgrad"])}
    paper = rows["pcgrad"].published.paper
    rows |= {row.name: row for row in plan("mask2tasks", rows=list(paper.baseline_rows.values()))}
    results = {name: Result(row) for name, row in rows.items()}
    for fold, (accuracy, jaccard) in enumerate(((0.5, 0.4), (0.9, 0.8))):
        both = _summary(classification=("accuracy", accuracy), segmentation=("jaccard", jaccard))
        results["pcgrad"].summaries[RunKey(fold)] = both
    for key, row in paper.baseline_rows.items():
        task, name = key.split(".")
        results[row].summaries[RunKey(0)] = _summary(**{task: (name, 0.4)})
    (first, *_) = paper.baseline_rows.values()
    task, name = next(iter(paper.baseline_rows)).split(".")
    results[first].summaries[RunKey(1)] = _summary(**{task: (name, 0.8)})
    return results, paper


def test_a_score_that_is_not_a_number_is_in_the_table(tmp_path):
    """statistics.stdev raises AttributeError for it, after all the training."""
    for broken in (nan, float("inf")):
        score = Score((broken, 0.5))
        assert not score.mean < float("inf")
        assert isnan(score.std)
    assert Score((float("inf"), float("-inf"))).std is not None
    (row,) = plan("mask2tasks", rows=["pcgrad"])
    both = {RunKey(n): _summary(classification=("accuracy", value)) for n, value in enumerate((nan, 0.5))}
    result = Result(row, both)
    assert "| nan ± nan |" in tables.markdown("mask2tasks", [result], tmp_path, "full", 2)


def test_a_gain_over_our_baselines_is_of_the_folds_that_both_have():
    results, paper = _results()
    _, over_published, over_own = tables.gains_of(list(results.values()))["pcgrad"]
    fold = {"classification.accuracy": 0.5, "segmentation.jaccard": 0.4}
    assert over_own == pytest.approx(delta_m(fold, dict.fromkeys(paper.baselines, 0.4)))
    assert over_own == pytest.approx(12.5)
    means = {"classification.accuracy": 0.7, "segmentation.jaccard": 0.6}
    assert over_published == pytest.approx(delta_m(means, paper.baselines))
    lines = list(csv.DictReader(tables.table_csv(list(results.values()), "full").splitlines()))
    folds = {line["metric"]: line["folds"] for line in lines if line["recipe"] == "mask2tasks/pcgrad"}
    assert (folds["delta_m"], folds["delta_m_over_our_baselines"]) == ("2", "1")


def test_a_gain_over_a_baseline_of_0_is_left_out():
    results, paper = _results()
    task, name = next(iter(paper.baseline_rows)).split(".")
    results[paper.baseline_rows[f"{task}.{name}"]].summaries[RunKey(0)] = _summary(**{task: (name, 0.0)})
    assert tables.gains_of(list(results.values()))["pcgrad"][2] is None


def test_a_mean_of_fewer_folds_than_ran_says_so(tmp_path):
    (row,) = plan("mask2tasks", rows=["pcgrad"])
    both = {RunKey(n): _summary(classification=("accuracy", value)) for n, value in enumerate((0.5, None))}
    result = Result(row, both)
    assert "| 0.500 (1 of 2 runs) |" in tables.markdown("mask2tasks", [result], tmp_path, "full", 2)


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"tasks": []}'])
def test_a_summary_without_tasks_is_damaged(content, tmp_path):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(RunError, match=r"summary\.json is damaged: it has no \"tasks\"\. Remove"):
        reproduction._finished(tmp_path)


def test_a_run_that_was_stopped_before_its_first_checkpoint_is_continued(tmp_path, monkeypatch):
    (tmp_path / "config.toml").touch()
    monkeypatch.setattr(api, "resume", lambda folder, console: {"continued": str(folder)})
    (row,) = plan("mask2tasks", rows=["pcgrad"])
    assert reproduction._train(row.recipe, tmp_path, tmp_path, None) == {"continued": str(tmp_path)}


def test_one_process_at_a_time(tmp_path):
    """The second would take the first's run, before its first checkpoint, for an interrupted one and remove it."""
    from rich.console import Console

    root, out = write_ebhi(tmp_path / "data"), tmp_path / "out"
    out.mkdir()
    quiet = Console(quiet=True)
    with locked(out, "busy"), pytest.raises(RunError, match=r"another process reproduces into .*choose another --out"):
        reproduce("mask2tasks", root, out, scale="tiny", folds=1, rows=["pcgrad"], console=quiet)
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_a_manifest_with_one_split_has_no_folds(tmp_path):
    """The same run five times had a deviation of 0."""
    root, told = write_ebhi(tmp_path / "data"), tmp_path / "data" / "tiles.csv"
    (row,) = plan("mask2tasks", rows=["pcgrad"], scale="tiny")
    folder = datasets.read_data(row.recipe, root)
    held_out = set(split_of(row.run(RunKey(0)), folder, root)[0].val)
    data.write_manifest(folder, told)
    head, *lines = told.read_text().splitlines()
    place = head.split(",").index("id")
    sides = ["val" if line.split(",")[place] in held_out else "train" for line in lines]
    told.write_text("\n".join([f"{head},split", *(f"{line},{side}" for line, side in zip(lines, sides, strict=True))]))
    reproduction._check_data(row, told, 1)
    with pytest.raises(ConfigError, match=r"tiles\.csv has one split for the 5 folds.*add --folds 1"):
        reproduction._check_data(row, told, 5)


def test_lines_that_have_no_curve_are_passed_over(tmp_path):
    (row,) = plan("joint_unet", rows=["dice_30"])
    known = {"class": "bright", "probabilities": {"weak": 0.25, "bright": 0.75}}
    broken = [{"probabilities": {"weak": 0.5, "bright": 0.5}}, {"class": "weak", "probabilities": {"weak": 1.0}}, 3]
    lines = [{"id": "a", "tasks": {"intensity": entry}} for entry in [known, *broken]]
    lines += [{"id": "b", "tasks": 3}, {"id": "c"}]
    (tmp_path / "evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert answers(Result(row, folders={RunKey(0): tmp_path}), "intensity") == ([True], [0.75])


def test_an_average_that_would_never_begin_is_refused(tmp_path):
    """It was passed over: the raw weights were judged as if they were the average."""
    swa = {"average": "swa", "average_start": 2, "epochs": 2}
    with pytest.raises(ConfigError, match=r"average_start must be less than the epochs of the last stage, 2; got 2"):
        recipe_of(tmp_path, training=swa)
    longer = [TWO[0], TWO[1] | {"epochs": 3}]
    assert recipe_of(tmp_path, longer, training=swa).training.average_start == 2
    short = recipe_of(tmp_path, training=swa | {"average_start": 15, "epochs": 20, "epoch_scale": 0.1})
    assert (short.training.epochs, short.training.average_start) == (2, 1)
