"""Recipes over own data: columns to tasks, splits of every kind, and training from a manifest and from slides."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiles import random_pixels, write_image
from PIL import Image

from fastmtl import data
from fastmtl.builders import components, datasets
from fastmtl.cli import main
from fastmtl.config import ConfigError, load_recipe

SMALL = ["--epochs", "1", "--size", "32", "--batch-size", "8", "--set", "model.base_channels=4"]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """24 tiles of 8 patients: a grade, an age, a box, three days; every sixth without a mask."""
    lines = ["image,mask,label,patient,grade,age,head_box,day"]
    for number in range(24):
        pixels = random_pixels(number)
        write_image(tmp_path / "tiles" / f"{number}.png", pixels)
        write_image(tmp_path / "masks" / f"{number}.png", (pixels[..., 0] > 127).astype(np.uint8) * 255)
        mask = "" if number % 6 == 5 else f"masks/{number}.png"
        grade = "" if number == 3 else f"G{number % 3 + 1}"
        cells = ["ab"[number % 2], f"p{number // 3}", grade, number, "2 2 12 8", number % 3]
        lines.append(",".join(map(str, [f"tiles/{number}.png", mask, *cells])))
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "manifest.csv"


@pytest.mark.parametrize(
    ("recipe", "table", "balanced", "pairs"),
    [
        ("demo", {}, False, None),
        ("demo", {"sampler": "balanced"}, True, None),
        ("demo", {"sampler": "balanced", "balance_by": "grade"}, "grade", None),
        ("demo", {"sampler": "pairs"}, False, ("case", "position")),
        ("gi_tract/contrastive_day", {}, False, ("case", "position", "case_number")),
    ],
)
def test_how_tiles_are_drawn_is_the_recipes_in_training_alone(recipe, table, balanced, pairs, monkeypatch):
    asked = []
    monkeypatch.setattr(data, "TileLoader", lambda tiles, **options: asked.append(options))
    recipe, folder = load_recipe(recipe, {"data": table}), data.Dataset(Path(), (), ())
    for train in (True, False):
        components.build_loader(recipe, folder, [], train=train, device=torch.device("cpu"))
    assert [(one["balanced"], one["pairs"]) for one in asked] == [(balanced, pairs), (False, None)]


def test_tiles_without_a_required_column_are_left_out(manifest: Path):
    """Also where no task reads the column, so that all rows of a table have the same images."""
    every = datasets.read_data(load_recipe("demo"), manifest)
    for column, count in (("mask", 4), ("grade", 1)):
        found = datasets.read_data(load_recipe("demo", {"data": {"require": [column]}}), manifest)
        assert len(found) == len(every) - count
        words = "4 tiles without mask" if column == "mask" else "1 tile without grade"
        assert f"{words} left out (data.require)" in [problem.reason for problem in found.problems]
    assert all(
        tile.mask is not None
        for tile in datasets.read_data(load_recipe("demo", {"data": {"require": ["label", "mask"]}}), manifest).tiles
    )
    with pytest.raises(ConfigError, match=r"data\.require names 'stage', which no tile of"):
        datasets.read_data(load_recipe("demo", {"data": {"require": ["stage"]}}), manifest)
    for row in ("pcgrad", "single_swin", "two_stage"):
        assert load_recipe(f"mask2tasks/{row}").data.require == ["mask"]


def test_a_damaged_tile_stops_or_is_left_out_as_the_recipe_says(manifest: Path):
    (manifest.parent / "tiles" / "7.png").write_bytes(b"no image")
    with pytest.raises(data.DamagedTilesError, match=r"7\.png"):
        datasets.read_splits(_recipe(), manifest)
    found = datasets.read_splits(_recipe(data={"on_damaged": "skip"}), manifest)
    assert len(found.train) + len(found.validation) == 23
    assert any("7.png" in str(problem) for problem in found.problems)


def _recipe(**overrides):
    return load_recipe("ebhi_joint_unet", overrides)


def test_columns_become_targets(manifest: Path):
    tasks = {"grade": {"kind": "classification", "column": "grade"}, "age": {"kind": "regression", "column": "age"}}
    recipe = _recipe(tasks=tasks, data={"size": 32, "batch_size": 24, "metadata": {"film": ["age", "day"]}})
    components.check_names(recipe)
    dataset = datasets.read_data(recipe, manifest)
    built = components.build_tasks(recipe, dataset.class_names, dataset.classes)
    datasets.check_targets(built, dataset)
    by_name = {task.name: task for task in built}
    assert by_name["grade"].class_names == ("G1", "G2", "G3")
    assert (by_name["grade"].target.column, by_name["age"].target.kind) == ("grade", "number")
    loader = components.build_loader(recipe, dataset, built, train=False, device=torch.device("cpu"))
    (batch,) = loader
    loader.close()
    order = [int(name.removeprefix("tiles/")) for name in batch.ids]
    assert batch.targets["age"].tolist() == order
    assert batch.metadata["film"].tolist() == [[number, number % 3] for number in order]
    expected = [-100 if number == 3 else number % 3 for number in order]
    assert batch.targets["grade"].tolist() == expected
    column = list(recipe.tasks).index("grade")
    assert [order[row] for row in (~batch.has_label[:, column]).nonzero()[:, 0].tolist()] == [3]


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ({"kind": "classification", "column": "grad"}, "column 'grad', but .* has none; did you mean 'grade'"),
        ({"kind": "classification", "column": "age"}, "needs a label, but column 'age' has a number; .*label, grade"),
        ({"kind": "regression", "column": "grade"}, "needs a number, but column 'grade' has a label"),
        ({"kind": "binary_segmentation", "column": "grade"}, "needs a mask, but column 'grade' has a label"),
        ({"kind": "regression"}, "learns a number but has no column; .*age, day"),
        ({"kind": "classification", "column": 3}, "must be text"),
    ],
)
def test_wrong_columns_are_named(manifest: Path, task: dict, says: str):
    recipe = load_recipe("demo", {"tasks": {"one": {"kind": task["kind"]}}})
    recipe.tasks.clear()
    recipe.tasks["one"] = task
    dataset = datasets.read_data(recipe, manifest)
    known = {"grad": "ab", "age": "ab", **dataset.classes}
    with pytest.raises(ValueError, match=says):
        datasets.check_targets(components.build_tasks(recipe, dataset.class_names, known), dataset)


def _sides(splits: datasets.Splits) -> list[set[str]]:
    return [set(side.groups) for side in (splits.train, splits.validation, splits.test)]


def test_three_sides_share_no_patient(manifest: Path):
    splits = datasets.read_splits(_recipe(data={"val_fraction": 0.25, "test_fraction": 0.125}), manifest)
    train, val, test = _sides(splits)
    assert (len(train), len(val), len(test)) == (5, 2, 1)
    assert len(train | val | test) == 8
    assert "to test" in splits.origin


def test_folds_hold_out_every_patient_once(manifest: Path):
    seen = Counter()
    for fold in range(4):
        splits = datasets.read_splits(_recipe(data={"folds": 4, "fold": fold, "stratify": "grade"}), manifest)
        seen.update(splits.validation.groups)
    assert seen == Counter({f"p{number}": 1 for number in range(8)})
    with pytest.raises(ValueError, match="must name a label column; did you mean 'grade'"):
        datasets.read_splits(_recipe(data={"folds": 4, "stratify": "grde"}), manifest)


def test_a_patients_day_is_kept_together(manifest: Path):
    splits = datasets.read_splits(_recipe(data={"group_by": "{patient}/{day}"}), manifest)
    assert len(splits.train.groups) + len(splits.validation.groups) == 24


def test_the_tables_own_split_wins_and_may_not_leak(manifest: Path):
    rows = manifest.read_text().splitlines()
    sides = ["train"] * 15 + ["val"] * 6 + ["test"] * 3
    lines = [f"{row},{side}" for row, side in zip(rows, ["split", *sides], strict=True)]
    manifest.write_text("\n".join(lines) + "\n")
    splits = datasets.read_splits(_recipe(), manifest)
    assert [len(side) for side in _sides(splits)] == [5, 2, 1]
    assert "column split" in splits.origin
    data.save_split(splits.split, manifest.parent / "saved.json")
    assert data.load_split(manifest.parent / "saved.json") == splits.split
    given = datasets.read_splits(_recipe(), manifest, manifest.parent / "saved.json")
    assert _sides(given) == _sides(splits)
    manifest.write_text("\n".join([*lines[:15], f"{rows[15]},val", *lines[16:]]) + "\n")
    with pytest.raises(ValueError, match=r"1 patient.* in training and in validation: p4"):
        datasets.read_splits(_recipe(), manifest)
    manifest.write_text("\n".join([*lines[:15], f"{rows[15]},", *lines[16:]]) + "\n")
    with pytest.raises(ValueError, match="tiles/14 has no split"):
        datasets.read_splits(_recipe(), manifest)


def test_training_from_a_manifest(manifest: Path, tmp_path: Path, capsys):
    out = tmp_path / "run"
    recipe = tmp_path / "own.toml"
    grade = '[tasks.grade]\nkind = "classification"\ncolumn = "grade"\n'
    recipe.write_text(f'extends = "demo"\n[data]\ntest_fraction = 0.125\n{grade}')
    assert main(["train", str(recipe), "--data", str(manifest), "--out", str(out), *SMALL]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["tasks"]) == set(summary["test"]["tasks"]) == {"segmentation", "classification", "grade"}
    assert set(summary["tasks"]["grade"]["per_class"]) == {"G1", "G2", "G3"}
    assert len(json.loads((out / "split.json").read_text())["test"]) == summary["test"]["num_images"]
    capsys.readouterr()
    assert main(["eval", str(out), "--data", str(manifest)]) == 0
    assert json.loads(capsys.readouterr().out)["num_images"] == summary["num_images"] + summary["test"]["num_images"]


def test_deep_grey_is_stretched_for_training_and_prediction(tmp_path: Path):
    for number in range(4):
        pixels = np.random.default_rng(number).integers(900, 3000, (24, 24), dtype=np.uint16)
        (tmp_path / "A" / "image").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "A" / "image" / f"p{number}-1.png")
    with pytest.raises(data.DamagedTilesError, match="8 bits"):
        data.usable_tiles(datasets.read_data(_recipe(), tmp_path))
    dataset, _ = data.usable_tiles(datasets.read_data(_recipe(data={"preprocessing": "min_max"}), tmp_path))
    assert all(data.open_picture(tile.image).max() == 255 for tile in dataset.tiles)


@pytest.mark.slow
def test_the_slide_recipe_learns(tmp_path: Path):
    assert main(["train", "demo_slides", "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["tasks"]["segmentation"]["dice"] > 0.8


def test_slides_train_with_polygons_and_random_patches(tmp_path: Path):
    root = data.generate_slides(tmp_path / "made", num_patients=3, slide_size=256)
    out = tmp_path / "run"
    own = ["--tile-size", "64", "--min-tissue", "0.3", "--patches-per-slide", "4", "--val-fraction", "0.34"]
    assert main(["train", "demo_slides", "--data", str(root), "--out", str(out), *own, *SMALL]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert 0 <= summary["tasks"]["segmentation"]["dice"] <= 1
    assert list((out / "tiles").glob("*.jpg")), "thumbnails of regions"
