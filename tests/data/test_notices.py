"""What is odd about a run: said while it trains, kept in summary.json, and shown on its page; too good is odd."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiles import random_pixels, write_image
from rich.console import Console

from fastmtl import api
from fastmtl.api import notices
from fastmtl.config import load_recipe
from fastmtl.data import Dataset, Problem, Tile
from fastmtl.ops.core import backends
from fastmtl.protocols import Batch, Target
from fastmtl.tasks import create_task

SMALL = {
    "model": {"base_channels": 4},
    "data": {"size": 32, "batch_size": 4, "num_threads": 1},
    "training": {"epochs": 1, "device": "cpu", "precision": "float32"},
}


def _dataset(labels=(), **columns):
    count = max([len(labels), *map(len, columns.values())])
    values = [{name: column[row] for name, column in columns.items()} for row in range(count)]
    tiles = [
        Tile(f"t{row}", Path("a.png"), None, labels[row] if labels else None, f"P{row}", values[row])
        for row in range(count)
    ]
    return Dataset(Path("data"), ("benign", "malignant"), tuple(tiles))


def _task(kind, column="", **options):
    task = create_task(kind, "t", 0, **options)
    task.target = Target(task.target.kind, column or task.target.column, task.target.size)
    return task


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ((1, 1, 1), "task 't': all 3 held-out labels are 'malignant': accuracy says nothing"),
        ((1,), "task 't': the one held-out label is 'malignant': accuracy says nothing"),
        ((0, None, 0), "task 't': all 2 held-out labels are 'benign': accuracy says nothing"),
        ((None, None), "task 't': none of the 2 held-out images has a value for it"),
        ((0, 1), None),
    ],
)
def test_labels_that_are_all_one(labels, said):
    task = _task("classification", class_names=["benign", "malignant"])
    assert notices.of_targets([task], _dataset(labels), "held-out") == ([said] if said else [])


@pytest.mark.parametrize(
    ("kind", "options", "values", "said"),
    [
        ("regression", {}, (3.5, 3.5), "all 2 training values are 3.5: there is nothing to learn"),
        ("regression", {}, (3, 3.0), "all 2 training values are 3: there is nothing to learn"),
        ("regression", {}, (3.5, 3.6), None),
        ("regression", {"size": 2}, ((1.0, 2.0), (1.0, 2.0)), "all 2 training values are (1.0, 2.0): there is nothing"),
        ("regression", {"size": 2}, ((1.0, 2.0), (1.0, 3.0)), None),
        ("bounding_box", {}, ((0.5, 0.5, 1.0, 1.0),) * 3, "all 3 training values are (0.5, 0.5, 1.0, 1.0)"),
    ],
)
def test_numbers_that_are_all_one(kind, options, values, said):
    found = notices.of_targets([_task(kind, "size", **options)], _dataset(size=values), "training")
    assert len(found) == bool(said)
    assert not said or said in found[0]


def test_nothing_is_said_of_tasks_that_only_help_and_of_no_images():
    tasks = [_task("reconstruction"), _task("contrastive"), _task("auxiliary_segmentation")]
    assert not notices.of_targets(tasks, _dataset((0, 0)), "training")
    task = _task("classification", class_names=["benign", "malignant"])
    assert not notices.of_targets([task], _dataset((0,)).subset([]), "test")


def _maps(task, *masks, has_label=None):
    seen = notices.MapsSeen([task])
    for mask in masks:
        target = torch.as_tensor(mask, dtype=torch.uint8)
        there = torch.ones(len(target), 1, dtype=torch.bool) if has_label is None else has_label
        seen(Batch(torch.zeros(len(target), 3, 2, 2), {"t": target}, there), {})
    return seen.notices("held-out")


_EMPTY, _FULL, _HALF = (torch.tensor(rows)[None, None] for rows in ([[0, 0]] * 2, [[1, 1]] * 2, [[0, 1]] * 2))
_CLASSES = {"structures": ["none", "gland", "tumour"]}


@pytest.mark.parametrize(
    ("kind", "options", "masks", "said"),
    [
        ("binary_segmentation", {}, [_EMPTY, _EMPTY], "all 2 held-out masks are empty: dice says nothing"),
        ("binary_segmentation", {}, [_EMPTY], "the one held-out mask is empty: dice says nothing"),
        ("binary_segmentation", {}, [_FULL, _FULL], "all 2 held-out masks are foreground everywhere"),
        ("binary_segmentation", {}, [_EMPTY, _FULL], None),
        ("binary_segmentation", {}, [_EMPTY, _HALF], None),
        ("universal_segmentation", {}, [_EMPTY, _EMPTY], "all 2 held-out masks are empty: jaccard says nothing"),
        ("multiclass_segmentation", _CLASSES, [_EMPTY], "the one held-out mask is empty"),
        ("multiclass_segmentation", _CLASSES, [_FULL], "the one held-out mask is 'gland' everywhere"),
        ("multiclass_segmentation", _CLASSES, [_HALF], "no held-out mask shows 'tumour', which counts as 1 where"),
        ("multiclass_segmentation", _CLASSES | {"empty": "skip"}, [_HALF], "which counts as nothing"),
        ("multiclass_segmentation", _CLASSES, [_HALF, 2 * _HALF], None),
        (
            "multilabel_segmentation",
            {"structures": ["gland", "tumour"], "empty": "zero"},
            [torch.cat([_HALF, _EMPTY], 1)],
            "no held-out mask shows 'tumour', which counts as 0",
        ),
    ],
)
def test_masks_that_are_all_alike(kind, options, masks, said):
    found = _maps(_task(kind, **options), *masks)
    assert len(found) == bool(said)
    assert not said or said in found[0]


def test_masks_that_nobody_drew_are_not_empty_ones():
    task = _task("binary_segmentation")
    assert _maps(task, _EMPTY, has_label=torch.zeros(1, 1, dtype=torch.bool)) == [
        "task 't': none of the held-out images has a mask for it"
    ]
    half = torch.tensor([[True], [False]])
    assert not _maps(task, torch.cat([_HALF, _EMPTY]), has_label=half)


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (1.0, "exactly 1.000 on 5 held-out images"),
        (0.99951, "1.000, rounded, on 5"),
        (0.9994, ""),
        (None, ""),
        (0.0, ""),
    ],
)
def test_a_score_that_is_too_good_is_questioned(score, said):
    task = _task("binary_segmentation")
    found = {"tasks": {"t": {"dice": score, "jaccard": 1.0}}, "num_images": 5}
    (line,) = notices.of_scores([task], found, "held-out") or [""]
    assert said in line
    assert bool(line) == bool(said)


def test_large_tiles_that_are_decoded_again_and_again():
    assert notices.of_reused_tiles([]) == notices.of_reused_tiles([{"epoch": 1}]) == []
    found = notices.of_reused_tiles([{"reused_tiles": 0.9}, {"reused_tiles": 0.125}])
    assert "only 12% were reused" in found[0]
    assert "data.open_slides" in found[0]
    assert notices.of_reused_tiles([{"reused_tiles": 0.1}, {"reused_tiles": 0.5}]) == []


def test_a_score_that_was_too_good_is_said_once_and_kept(capsys):
    task = _task("classification", class_names=["a", "b"])
    records = [
        {"epoch": epoch, "validation": {"tasks": {"t": {"accuracy": score}}}}
        for epoch, score in enumerate([0.5, 1.0, 1.0, 0.75], 1)
    ]
    watch = notices.ScoreWatch([task], Console(file=sys.stderr, soft_wrap=True))
    for record in [{"epoch": 0}, *records]:
        watch.on_epoch(record)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: task 't': accuracy is exactly 1.000 on the held-out images after epoch 2:")
    last = {"tasks": {"t": {"accuracy": 0.75}}, "num_images": 3}
    assert notices.of_epochs([task], last, records) == [line.removeprefix("note: ")]
    assert not notices.of_epochs([task], last | {"tasks": {"t": {"accuracy": 1.0}}}, records), "its score says so"


def test_paths_are_told_from_the_datas_folder(tmp_path):
    (tmp_path / "manifest.csv").touch()
    problems = [
        Problem(tmp_path / "A" / "x.png", "odd"),
        Problem(tmp_path / "A" / "x.png", "odd"),
        Problem(tmp_path.parent / "elsewhere.png", "odd"),
        Problem(tmp_path, "odd"),
        Problem(Path("column grade"), "odd"),
        Problem(tmp_path / "..x" / "a.png", "odd"),
    ]
    said = ["A/x.png", str(tmp_path.parent / "elsewhere.png"), tmp_path.name, "column grade", "..x/a.png"]
    for root in (tmp_path, tmp_path / "manifest.csv"):
        assert notices.of_problems(problems, root) == [f"{path}: odd" for path in said]


def _tiles(root):
    """Eight tiles of two classes, the masks of the two held-out ones empty, and a mask without an image."""
    empty = np.zeros((32, 32), np.uint8)
    for number in range(8):
        folder, mask = root / "AB"[number % 2], empty.copy()
        mask[8:24, : 16 * (number < 6)] = 255
        write_image(folder / "image" / f"P{number}-1.png", random_pixels(number, 32))
        write_image(folder / "label" / f"P{number}-1.png", mask)
    write_image(root / "A" / "label" / "P9-1.png", empty)
    (root / "split.json").write_text(json.dumps({"validation_patients": ["P6", "P7"]}))
    return root


def test_what_was_odd_ends_in_the_run_folder_and_is_not_doubled_by_resuming(tmp_path, capsys):
    data, run = _tiles(tmp_path / "data"), tmp_path / "run"
    console = Console(file=sys.stderr, soft_wrap=True)
    found = api.train(load_recipe("ebhi_joint_unet", SMALL), data, run, console=console)["notices"]
    log = capsys.readouterr().err
    assert found[0] == "A/label/P9-1.png: a mask without an image of the same name"
    assert found[1].startswith("data: every tile is its own patient; ")
    assert any("all 2 held-out masks are empty: dice says nothing" in notice for notice in found)
    assert all(f"note: {notice}" in log for notice in found[2:])  # the first two are told with the whole path
    assert sum("its own patient" in notice for notice in found) == 1
    assert json.loads((run / "run.json").read_text())["notices"] == found[:2], "of the data, for a run that is stopped"
    assert json.loads((run / "summary.json").read_text())["notices"] == found
    page = (run / "report.html").read_text()
    assert "<h2>Notices</h2>" in page
    assert "P9-1.png: a mask without an image" in page
    (run / "summary.json").unlink()  # as if it had been stopped before its end
    assert api.resume(run, console=console)["notices"] == found
    again = api.evaluate(run, data)["notices"]
    assert again[0] == found[0]
    assert any("all 2 evaluated masks are empty: dice says nothing" in notice for notice in again)


@pytest.mark.parametrize("absent", [(), ("cuda",), ("cuda", "cupy")])
def test_what_a_gpu_lacks_is_named_once(monkeypatch, absent):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backends, "missing", lambda name: f"no {name} here" if name in absent else None)
    gpu = torch.device("cuda", 0)
    found = notices.of_fallbacks(gpu, fused_step=True, stains=True)
    assert len(found) == len(absent)
    assert all(f"no {name} here" in note for name, note in zip(absent, found, strict=True))
    assert notices.of_fallbacks(gpu, fused_step=False, stains=False) == []
    assert notices.of_fallbacks(torch.device("cpu"), fused_step=True, stains=True) == []
