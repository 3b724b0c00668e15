"""Data sets side by side that do not fit: one line each, which names the set and the option."""

from __future__ import annotations

import re
import shutil

import pytest
from helpers.side_by_side import RECIPE, recipe_of, write_sets
from helpers.tiles import random_pixels, write_image

from fastmtl.builders.datasets import read_data
from fastmtl.builders.sets import rare_sets
from fastmtl.cli import main


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("sets"))


def _refused(root, tmp_path, capsys, *, recipe=RECIPE, options=()):
    path = tmp_path / "recipe.toml"
    path.write_text(recipe)
    arguments = ["train", str(path), "--data", str(root), "--out", str(tmp_path / "run"), *options]
    assert main(arguments) == 1
    assert not (tmp_path / "run").exists()
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("fastmtl: ")
    return last


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "lung"', 'name = "colon"', "two of data.sets have the name 'colon'; give each its own"),
        ('name = "lung"', 'name = "Colon"', "two of data.sets have the name 'colon' or 'Colon'"),
        ('name = "lung"', 'name = "a/b"', r"data.sets\[1\] needs a `name` without dots, slashes"),
        (
            'tasks = ["gland", "histology"]',
            'tasks = ["gland"]',
            "task 'histology' is in no set; .*`tasks` .*colon, lung",
        ),
        ('"histology"]', '"histologie"]', "data.sets.lung.tasks has an unknown task 'histologie'; .*'histology'"),
        ('tasks = ["gland", "histology"]', "tasks = []", "data.sets.lung.tasks must name tasks, each once; got"),
        ('data = "lung"', 'data = ""', "data.sets.lung.data must name a manifest or a folder"),
        ('data = "lung"', 'data = "lungs"', "data.sets.lung.data: .*lungs does not exist"),
        ('data = "lung"', 'data = "lung"\nweight = 2.0', "data.sets.colon has no weight above 0, and others"),
        ('data = "lung"', 'data = "lung"\nweight = -2.0', "data.sets.lung.weight must be finite and not negative"),
        ('data = "lung"', 'data = "lung"\nwieght = 2.0', "unknown key 'data.sets.lung.wieght'; .*'weight'"),
        (
            'data = "lung"',
            'data = "lung"\noptions = { patints = "P" }',
            "'data.sets.lung.options.patints'; .*'patient'",
        ),
        ('data = "lung"', 'data = "lung"\noptions = { mpp = -1.0 }', "data.sets.lung: data.mpp must be finite"),
        ('data = "lung"', 'data = "lung"\noptions = { root = 3 }', "data.sets.lung.options.root must be text; got 3"),
        ("size = 32", "size = 32\nsets_temperature = 0.0", "data.sets_temperature must be finite and above 0; got 0.0"),
        ("size = 32", "size = 32\nsets_temperature = inf", "data.sets_temperature must be finite and above 0; got inf"),
        ("size = 32", "size = 32\nsets_zeta = [1.0]", "sets_zeta must be two finite numbers, not negative"),
        ("size = 32", "size = 32\nsets_zeta = [1.0, -1.0]", "sets_zeta must be two finite numbers, not negative"),
        ("size = 32\nbatch_size = 4", "size = 32\nbatch_size = 1\nsets_zeta = [1.0, 1.0]", "batch_size of 2 or more"),
        ("size = 32", "size = 32\nsets_floor = 0.0", "data.sets_floor must be above 0 and at most 1; got 0.0"),
        ("size = 32", "size = 32\nsets_probe_every = 0", "data.sets_probe_every must be 1 or more; got 0"),
        ("size = 32", 'size = 32\nsampler = "balanced"', '"shuffled" with data.sets; .*; weight rare classes by'),
        (
            "size = 32",
            'size = 32\nsampler = "pairs"',
            '"shuffled" with data.sets; .*; train the task of pairs in a run',
        ),
        ("size = 32", "size = 32\nper_slide = 3", "data.per_slide cannot be combined with data.sets; got 3; remove it"),
        (
            "size = 32",
            "size = 32\nopen_slides = 3",
            "open_slides cannot be combined .* got 3; remove it: .* all its slides",
        ),
        ("size = 32", "size = 32\npatches_per_slide = 3", "patches_per_slide cannot be combined .*: .* into a grid"),
        (
            "size = 32",
            "size = 32\nsets_temperature = 1e-5",
            "data.sets.colon has the share 0, rounded, and would never",
        ),
        ("size = 32", 'size = 32\nsets_batches = "two"', "data.sets_batches must be one of 'one', 'mixed'"),
        ("size = 32", 'size = 32\nstratify = "label"', "a tile's own label is its set"),
        (
            "[model]",
            '[[stages]]\nname = "first"\nepochs = 1\ntasks = ["lesion"]\n[model]',
            "stages.first trains lesion, and data.sets.lung has labels for gland, histology only",
        ),
        (
            "[model]",
            '[balancer]\nname = "du_gate"\nmain = "lesion"\n[model]',
            "balancer.main is 'lesion', .*no labels for",
        ),
        (
            "[model]",
            '[distributed]\nstrategy = "fsdp2"\n[model]',
            'sets_batches = "one" needs distributed.strategy = "ddp"',
        ),
    ],
)
def test_a_recipe_that_does_not_fit_is_told_in_a_line(old, new, says, root, tmp_path, capsys):
    recipe = RECIPE.replace(old, new)
    assert recipe != RECIPE
    last = _refused(root, tmp_path, capsys, recipe=recipe)
    assert re.search(says, last), last
    assert len(last) < 400


@pytest.mark.parametrize(("batches", "unit"), [("one", "batch"), ("mixed", "image")])
def test_a_set_that_may_never_be_drawn_is_told(batches, unit, root):
    sets = {"colon": {"weight": 1000.0}, "lung": {"weight": 0.1}}
    recipe = recipe_of(root, data={"sets": sets, "sets_batches": batches})
    (said,) = rare_sets(recipe, read_data(recipe, root), 4)
    assert re.search(
        rf"data\.sets\.lung: its share of 0\.0001 is 0\.00\d+ of one {unit} in .* may never be drawn", said
    )
    assert rare_sets(recipe_of(root), read_data(recipe, root), 4) == []


def test_keys_of_sets_without_sets_are_refused(root, tmp_path, capsys):
    recipe = 'extends = "demo"\n[data]\nsets_temperature = 2.0\n'
    assert "data.sets_temperature needs [[data.sets]]; got 2.0" in _refused(root, tmp_path, capsys, recipe=recipe)


def test_a_set_without_labels_of_its_task_is_named(root, tmp_path, capsys):
    recipe = RECIPE.replace('kind = "binary_segmentation"', 'kind = "binary_segmentation"\ncolumn = "outline"')
    last = _refused(root, tmp_path, capsys, recipe=recipe)
    assert re.search("data.sets.colon, tasks gland, lesion: task 'gland' learns from column 'outline', but", last)


def test_a_set_without_masks_is_named(root, tmp_path, capsys):
    shutil.copytree(root, tmp_path / "data")
    for folder in (tmp_path / "data" / "lung").glob("*/label"):
        shutil.rmtree(folder)
    lung = tmp_path / "data" / "lung"
    rows = [f"{path.relative_to(lung)},{path.parents[1].name}\n" for path in sorted(lung.glob("*/image/*.png"))]
    (lung / "manifest.csv").write_text("image,label\n" + "".join(rows))
    last = _refused(tmp_path / "data", tmp_path, capsys)
    assert re.search("data.sets.lung, tasks gland, histology: task 'gland' learns from column 'mask', but .*lung", last)


def test_other_classes_of_a_task_in_two_sets_are_named(root, tmp_path, capsys):
    recipe = RECIPE.replace('tasks = ["gland", "lesion"]', 'tasks = ["gland", "lesion", "histology"]')
    last = _refused(root, tmp_path, capsys, recipe=recipe)
    assert re.search(
        "tasks.histology has the classes normal, polyp in data.sets.colon and adeno, benign, squamous in "
        "data.sets.lung; list the same for both in data.classes.label, or make two tasks of it",
        last,
    )


def test_other_lengths_of_vectors_in_two_sets_are_named(tmp_path, capsys):
    for name, vector in (("colon", "1 2 3"), ("lung", "1 2")):
        rows = []
        for number in range(4):
            write_image(tmp_path / name / f"P{number}-1.png", random_pixels(len(name) * 10 + number, 32))
            rows.append(f"P{number}-1.png,{vector}")
        (tmp_path / name / "manifest.csv").write_text("image,cells\n" + "\n".join(rows) + "\n")
    sets = "".join(
        f'[[data.sets]]\nname = "{name}"\ndata = "{name}"\ntasks = ["counts"]\n' for name in ("colon", "lung")
    )
    recipe = (
        'extends = "demo"\nwithout = ["tasks"]\n[data]\ngenerator = ""\nsize = 32\n[data.columns]\ncells = "vector"\n'
        + sets
        + '[tasks.counts]\nkind = "regression"\ncolumn = "cells"\nsize = 3\n'
    )
    last = _refused(tmp_path, tmp_path, capsys, recipe=recipe)
    assert re.search("tasks.counts has 3 numbers in data.sets.colon and 2 in data.sets.lung, column 'cells'", last), (
        last
    )


def test_a_set_that_is_held_out_whole_is_named(root, tmp_path, capsys):
    split = tmp_path / "split.json"
    split.write_text('{"validation_patients": ["P00", "P01", "P02", "P03", "P04", "P05"]}')
    last = _refused(root, tmp_path, capsys, options=["--split", str(split)])
    said = "data.sets.colon has no tile to train on: the split holds all its patients out"
    assert said in last
    shutil.copytree(root, tmp_path / "data")
    split.replace(tmp_path / "data" / "split.json")
    assert main(["data", "check", str(tmp_path / "data"), "--recipe", str(root / "recipe.toml")]) == 1
    assert said in " ".join(capsys.readouterr().out.split())
