"""The table's intervals over patients, its paired differences, and several seeds."""

import csv
import json

import numpy as np
import pytest
from helpers.published import write_ebhi
from helpers.reproduced import lines_of, write_run

from fastmtl import api
from fastmtl.cli import main
from fastmtl.evaluation import bootstrap
from fastmtl.reproduce import plan, tables
from fastmtl.reproduce.differences import Evidence
from fastmtl.reproduce.plan import Result, RunKey
from fastmtl.reproduce.runs import ImageResults

ROWS = ("single_swin", "single_resnet50", "single_efficientnet")


def _result(tmp_path, name, runs, *, lines=None):
    """A row whose run (fold, seed) is right with the chance `runs[fold, seed]`."""
    (row,) = plan("mask2tasks", rows=[name])
    result = Result(row)
    for (fold, seed), right in runs.items():
        key = RunKey(fold, seed)
        folder = tmp_path / name / key.folder
        found = lines or lines_of(fold, right, seed=fold + 10 * seed)
        result.summaries[key] = write_run(row.run(key), tmp_path, folder, found)
        result.folders[key] = folder
    return result


def _section(results, tmp_path, **options):
    evidence = Evidence.of(results, **options)
    page = tables.markdown("mask2tasks", results, tmp_path, "full", 2, evidence)
    return page.partition("## Which differences are real")[2].partition("\n## ")[0]


def _row(text, name):
    return next(line for line in text.splitlines() if line.startswith(f"| {name} |")).split(" | ")


def test_a_clear_difference_is_real_and_the_same_answers_are_not(tmp_path):
    folds = {(0, 0): 0.4, (1, 0): 0.4}
    results = [
        _result(tmp_path, "single_swin", folds),
        _result(tmp_path, "single_resnet50", dict.fromkeys(folds, 0.95)),
        _result(tmp_path, "single_efficientnet", folds),
    ]
    comparison = Evidence.of(results).comparisons["classification.accuracy"]
    assert comparison.reference is results[0]
    assert comparison.is_real("single_resnet50")
    same = comparison.differences["single_efficientnet"]
    assert (same.value, same.interval, comparison.corrected["single_efficientnet"]) == (0, (0, 0), 1)
    assert not comparison.is_real("single_efficientnet")
    text = _section(results, tmp_path)
    assert "of the 24 patients" in text
    assert _row(text, "SwinTransformer")[1] == "reference"
    assert _row(text, "Resnet50")[1].startswith("**+0.")
    assert "p < 0.001" in _row(text, "Resnet50")[1]
    assert _row(text, "EfficientNet")[1] == "+0.000 [+0.000, +0.000], not distinguishable, p 1.000"


def test_the_difference_is_that_of_the_tables_means_and_its_interval_that_of_a_plain_bootstrap(tmp_path):
    runs = {(fold, seed): 0.6 for fold in (0, 1) for seed in (0, 1)}
    first = _result(tmp_path, "single_swin", runs)
    second = _result(tmp_path, "single_resnet50", dict.fromkeys(runs, 0.7))
    key, images = "classification.accuracy", ImageResults([first, second])
    found = Evidence.of([first, second]).comparisons[key].differences["single_resnet50"]
    means = [tables.cell(one, key).ours.mean for one in (first, second)]
    assert found.value == pytest.approx(means[1] - means[0])
    lines = [
        [
            [json.loads(line) for line in (folder / "evaluation.jsonl").read_text().splitlines()]
            for folder in one.folders.values()
        ]
        for one in (first, second)
    ]
    patients = sorted({line["patient"] for run in lines[0] for line in run})
    slow = []
    for counts in next(bootstrap.resamples(len(patients), 400)):
        drawn = dict(zip(patients, counts, strict=True))
        scores = []
        for row in lines:
            each = []
            for run in row:
                hits = [(x["class"] == x["predicted"], drawn[p]) for p, x in _answers(run)]
                each.append(np.average([hit for hit, _ in hits], weights=[count for _, count in hits]))
            scores.append(np.mean(each))
        slow.append(scores[1] - scores[0])
    low, high = np.quantile(slow, (0.025, 0.975))
    pair = tuple(list(images.statistics(one, key).values()) for one in (second, first))
    assert bootstrap.differences({"it": pair}, 400)["it"].interval == pytest.approx((low, high))
    assert found.interval == pytest.approx((low, high), abs=0.03), "of more resamples"


def _answers(lines):
    return [(line["patient"], line["tasks"]["classification"]) for line in lines]


def test_the_reference_can_be_chosen_and_shared_runs_alone_count(tmp_path):
    results = [
        _result(tmp_path, "single_swin", {(0, 0): 0.9}),
        _result(tmp_path, "single_resnet50", {(0, 0): 0.5, (1, 0): 0.5}),
        _result(tmp_path, "single_efficientnet", {(1, 0): 0.5}),
    ]
    text = _section(results, tmp_path, against="single_resnet50")
    assert "classification accuracy, minus Resnet50" in text
    assert "(1 of 2 runs)" in _row(text, "SwinTransformer")[1]
    assert _row(text, "Resnet50")[1] == "reference"
    assert "| EfficientNet |" not in _section(results, tmp_path), "it shares no run with the first row"


def test_rows_that_held_out_other_images_are_not_compared(tmp_path):
    results = [
        _result(tmp_path, "single_swin", {(0, 0): 0.9}),
        _result(tmp_path, "single_resnet50", {(0, 0): 0.9}, lines=lines_of(5, 0.5)),
    ]
    assert _row(_section(results, tmp_path), "Resnet50")[1] == "other images"


def test_one_row_runs_of_earlier_versions_and_failed_rows_have_no_section(tmp_path):
    first = _result(tmp_path, "single_swin", {(0, 0): 0.9})
    assert _section([first], tmp_path) == ""
    (row,) = plan("mask2tasks", rows=["single_resnet50"])
    assert _section([first, Result(row, failures={RunKey(0): "RuntimeError: no"})], tmp_path) == ""
    second = _result(tmp_path, "single_efficientnet", {(0, 0): 0.5})
    (second.folders[RunKey(0)] / "evaluation.jsonl").unlink()
    assert _section([first, second], tmp_path) == ""
    for broken in ("3\n", '{"id": "a", "tasks": 3}\n', '{"id": "a", "tasks": {"classification": {}}}\n'):
        (second.folders[RunKey(0)] / "evaluation.jsonl").write_text(broken)
        assert _section([first, second], tmp_path) == ""


def test_without_patients_images_are_resampled(tmp_path):
    lines = [{key: value for key, value in line.items() if key != "patient"} for line in lines_of(0, 0.5)]
    results = [
        _result(tmp_path, "single_swin", {(0, 0): 0.5}, lines=lines),
        _result(tmp_path, "single_resnet50", {(0, 0): 0.5}, lines=lines),
    ]
    found = Evidence.of(results).comparisons["classification.accuracy"].differences["single_resnet50"]
    assert found.num_patients == len(lines)


def test_every_row_has_its_interval_balanced_accuracy_and_recall_of_each_class(tmp_path):
    result = _result(tmp_path, "single_swin", {(0, 0): 0.8})
    page = tables.markdown("mask2tasks", [result], tmp_path, "full", 1)
    accuracy = result.summaries[RunKey(0)]["tasks"]["classification"]["accuracy"]
    cells = next(line for line in page.splitlines() if line.startswith("| SwinTransformer |")).split(" | ")
    low, high = Evidence.of([result]).intervals["single_swin", "classification.accuracy"]
    assert low < accuracy < high
    assert cells[2] == f"{accuracy:.3f} [{low:.3f}, {high:.3f}]"
    head = next(line for line in page.splitlines() if line.startswith("| Row |"))
    assert "classification balanced accuracy, ours" in head
    assert "balanced accuracy, paper" not in head
    assert "## classification per class" in page
    assert "U-Net, cited by the paper" not in page.partition("## classification per class")[2]


@pytest.fixture
def trained(monkeypatch):
    """`api.train` writes made-up runs; returns the seeds and folders that it was called with."""
    calls = []

    def train(recipe, root, folder, **options):
        calls.append((folder.parent.name, folder.name, recipe.training.seed, recipe.data.fold))
        return write_run(recipe, root, folder, lines_of(recipe.data.fold, 0.7, seed=recipe.training.seed))

    monkeypatch.setattr(api, "train", train)
    return calls


def test_seeds_repeat_every_fold_and_keep_the_folders_of_one_seed(tmp_path, trained, capsys):
    root, out = write_ebhi(tmp_path / "data"), tmp_path / "out"
    arguments = ["reproduce", "mask2tasks", "--data", root, "--out", out, "--folds", 2, "--scale", "tiny"]
    arguments = [*map(str, arguments), "--rows", *ROWS[:2]]
    assert main(arguments) == 0
    assert [call[1:] for call in trained] == [("fold-0", 0, 0)] * 2 + [("fold-1", 0, 1)] * 2
    trained.clear()
    capsys.readouterr()
    assert main([*arguments, "--seeds", "2", "--against", "single_resnet50"]) == 0
    assert trained == [
        (row, name, 1, fold) for name, fold in (("fold-0-seed-1", 0), ("fold-1-seed-1", 1)) for row in ROWS[:2]
    ]
    printed = capsys.readouterr()
    assert "single_swin, fold 1: kept" in printed.err
    assert "2 of 5 folds, 2 seeds" in printed.out
    assert "over folds and seeds" in printed.out
    assert "classification accuracy, minus Resnet50" in printed.out
    lines = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    (line,) = [one for one in lines if one["row"] == "SwinTransformer" and one["metric"] == "classification.accuracy"]
    assert (line["folds"], line["runs"], line["against"]) == ("2", "4", "single_resnet50")
    assert float(line["low"]) < float(line["mean"]) < float(line["high"])
    assert float(line["difference_low"]) <= float(line["difference"]) <= float(line["difference_high"])
    assert float(line["p"]) <= float(line["p_corrected"]) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seeds", "0"), "--seeds must be 1 or more; got 0"),
        (("--against", "single_swim"), "--against: mask2tasks has no row 'single_swim'; did you mean 'single_swin' or"),
        (("--against", "single_swin"), "--against: single_swin is neither among the --rows nor in"),
    ],
)
def test_wrong_options_are_one_line(options, message, tmp_path, trained, capsys):
    root = write_ebhi(tmp_path / "data")
    arguments = ["reproduce", "mask2tasks", "--data", str(root), "--out", str(tmp_path / "out"), "--rows", ROWS[1]]
    assert main([*arguments, *options]) == 1
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not trained
