"""`fastmtl data check --recipe`: all that training would refuse, at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.data_check import write_rows
from helpers.tiles import random_pixels, write_folder, write_image

from fastmtl import data
from fastmtl.builders.components import build_tasks
from fastmtl.cli import main
from fastmtl.config import ConfigError, load_recipe
from fastmtl.data import read_manifest

RECIPE = """
extends = "demo"
[data]
generator = ""
[tasks.other]
kind = "classification"
column = "organ"
"""


def test_a_recipe_learns_all_that_it_refuses_at_once(tmp_path: Path, capsys):
    folder = tmp_path / "data"
    dataset = masked_and_labelled(folder)
    recipe = tmp_path / "mine.toml"
    recipe.write_text(RECIPE)
    assert main(["data", "check", str(folder), "--recipe", str(recipe), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["broken"] == []
    masks, column = found["refused"]
    assert "task 'segmentation'" in masks
    assert "127" in masks
    assert "task 'other'" in column
    assert main(["data", "check", str(folder), "--recipe", str(recipe)]) == 1
    assert capsys.readouterr().out.count("refused: ") == 2
    assert main(["train", str(recipe), "--data", str(folder), "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert any(line in said for line in found["refused"]), "training says one of them, and stops"
    assert len(dataset) == 12


def masked_and_labelled(folder: Path) -> data.Dataset:
    """Masks of 0 and 1, two classes, no column organ."""
    rows = []
    for n in range(12):
        write_image(folder / f"p{n // 2}-{n}.png", random_pixels(n, 32))
        write_image(folder / f"m{n}.png", np.arange(32 * 32, dtype=np.uint8).reshape(32, 32) % 2)
        rows.append(f"p{n // 2}-{n}.png,m{n}.png,{'ab'[n % 2]}")
    return read_manifest(write_rows(folder, "image,mask,label", rows))


def test_a_recipe_that_fits_refuses_nothing(tmp_path: Path, capsys):
    pytest.importorskip("nvidia.dali", reason="the loader needs DALI")
    write_folder(tmp_path, {"A": 8, "B": 8}, size=32)
    assert main(["data", "check", str(tmp_path), "--recipe", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["refused"] == []


def test_a_task_of_classes_on_data_without_any_names_the_cure():
    with pytest.raises(ConfigError, match=r'none\. Remove the task: without = \["tasks\.classification"\]'):
        build_tasks(load_recipe("demo"), ())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["data.folds=40"], "folds"),
        (["data.stratify=organ"], "stratify"),
        (["tasks.classification.column=organ"], "at least two classes, but the data have no classes in column 'organ'"),
        (["data.sampler=pairs"], "case"),
        (['data.metadata={film = ["age"]}'], "age"),
    ],
)
def test_what_training_refuses_is_refused(tmp_path: Path, capsys, options: list[str], said: str):
    pytest.importorskip("nvidia.dali", reason="the loader needs DALI")
    write_folder(tmp_path / "data", {"A": 8, "B": 8}, size=32)
    sets = [word for option in options for word in ("--set", option)]
    assert main(["data", "check", str(tmp_path / "data"), "--recipe", "demo", *sets]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("refused: ")]
    assert said in line
    train = ["train", "demo", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *sets]
    assert main(train) == 1
    assert line.removeprefix("refused: ").rstrip(".") in " ".join(capsys.readouterr().err.split())


def test_damaged_tiles_are_refused_as_the_recipe_says(tmp_path: Path, capsys):
    pytest.importorskip("nvidia.dali", reason="the loader needs DALI")
    folder = write_folder(tmp_path, {"A": 16, "B": 16}, size=32)
    Path(str(folder.tiles[3].image)).write_bytes(b"no image")
    for policy, refused in (("raise", ["1 of 32 tiles are damaged"]), ("skip", [])):
        options = ["--recipe", "demo", "--set", f"data.on_damaged={policy}", "--json"]
        assert main(["data", "check", str(tmp_path), *options]) == 1  # something is broken
        found = json.loads(capsys.readouterr().out)
        assert found["damaged_tiles"] == [folder.tiles[3].id]
        assert [line.split(";")[0] for line in found["refused"]] == refused
