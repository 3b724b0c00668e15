"""The inner share of the training patients, and the protocol that says which images may choose the epoch."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations

import pytest
import tomli_w
from helpers.tiles import write_folder
from rich.console import Console

from fastmtl import api, data
from fastmtl.builders import datasets, selection
from fastmtl.cli import main
from fastmtl.config import ConfigError, as_dict, load_recipe

UNBIASED = {"protocol": "unbiased", "data": {"inner_fraction": 0.25}}
CLASSES = {"a": 12, "b": 12}


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("tiles"), CLASSES, tiles_per_group=2).root


def _splits(tiles, **overrides):
    return datasets.read_splits(load_recipe("demo", overrides), tiles)


def _patients(part):
    return {tile.group for tile in part.tiles}


@pytest.mark.parametrize("config", [{"val_fraction": 0.25}, {"folds": 3, "fold": 1}, {"test_fraction": 0.2}])
def test_the_inner_share_is_of_training_patients_alone(tiles, config):
    before = _splits(tiles, data=config)
    after = _splits(tiles, data=config | {"inner_fraction": 0.25})
    sides = [_patients(part) for part in (after.train, after.inner, after.validation, after.test)]
    assert not any(one & other for one, other in combinations(sides, 2))
    assert sides[0] | sides[1] == _patients(before.train)
    assert (after.split.val, after.split.test) == (before.split.val, before.split.test), "what is scored stays"
    assert {tile.label for tile in after.inner.tiles} == {tile.label for tile in after.train.tiles} == {0, 1}
    assert len(after.inner) / len(before.train) == pytest.approx(0.25, abs=0.1)
    assert after.watching is after.inner
    assert before.watching is before.validation
    assert after == _splits(tiles, data=config | {"inner_fraction": 0.25}), "seeded"
    assert f"inner share: {len(after.inner)} training tiles" in after.origin


def test_the_inner_share_keeps_the_recipes_groups(tiles):
    found = _splits(tiles, data={"group_by": "tile", "inner_fraction": 0.25})
    assert not set(found.split.inner) & set(found.split.train)
    assert _patients(found.inner) == set(found.split.inner)


def test_published_takes_the_scored_images_and_unbiased_never_does(tiles):
    published = _splits(tiles, protocol="published", data={"inner_fraction": 0.25})
    assert not published.inner.tiles
    assert published.split == _splits(tiles).split
    assert _splits(tiles, **UNBIASED).inner.tiles
    with pytest.raises(ConfigError, match=r'protocol = "unbiased", but training.checkpoint = "best" and the images'):
        _splits(tiles, protocol="unbiased")
    _splits(tiles, protocol="unbiased", training={"checkpoint": "last"})
    _splits(tiles, protocol="unbiased", data={"test_fraction": 0.2})


@pytest.mark.parametrize(
    ("tables", "setting"),
    [
        ({"training": {"checkpoint": "best"}}, 'training.checkpoint = "best"'),
        ({"training": {"patience": 3}}, "training.patience = 3"),
        ({"optimizer": {"schedule": "plateau"}}, 'optimizer.schedule = "plateau"'),
        ({"stages": [{"name": "a", "epochs": 1, "optimizer": {"schedule": "plateau"}}]}, "plateau"),
        ({"stages": [{"name": "a", "epochs": 1}, {"name": "b", "epochs": 1, "start": "best"}]}, "stages.b.start"),
        ({}, ""),
    ],
)
def test_what_lets_images_choose(tables, setting):
    training = {"checkpoint": "last"} | tables.get("training", {})
    recipe = load_recipe("demo", tables | {"training": training})
    assert setting in selection.selects(recipe)
    assert bool(selection.selects(recipe)) == bool(setting)


def test_a_leak_into_the_inner_share_is_refused(tiles):
    folder = data.read_dataset(tiles)
    split = data.grouped_split(folder)
    leaky = replace(split, inner=(split.train[0],), inner_groups=("any",))
    with pytest.raises(ValueError, match="are in training and in the inner share"):
        leaky.apply(folder)
    with pytest.raises(ValueError, match="are in validation and in the inner share"):
        replace(split, inner=(split.val[0],)).apply(folder)
    with pytest.raises(ValueError, match="`groups` and `inner_groups` both name"):
        data.split_by_groups(folder, split.held_out_groups, (), split.held_out_groups[:1])


def test_impossible_inner_shares_say_why(tiles, tmp_path):
    folder = data.read_dataset(write_folder(tmp_path / "two", {"a": 4}, tiles_per_group=2).root)
    split = data.grouped_split(folder, 0.5)
    with pytest.raises(ValueError, match="has one training patient, and an inner share needs 2"):
        data.with_inner_share(folder, split, 0.2)
    with pytest.raises(ConfigError, match=r"data.inner_fraction = 0.2 cannot be drawn: .* one training patient"):
        datasets.read_splits(
            load_recipe("demo", {"data": {"inner_fraction": 0.2, "val_fraction": 0.5}}), tmp_path / "two"
        )
    with pytest.raises(ConfigError, match=r"data.inner_fraction must be in \[0, 1\)"):
        load_recipe("demo", {"data": {"inner_fraction": 1.0}})
    with pytest.raises(ConfigError, match="protocol"):
        load_recipe("demo", {"protocol": "fair"})


def test_split_files_hold_the_inner_share(tiles, tmp_path):
    found = _splits(tiles, **UNBIASED)
    data.save_split(found.split, tmp_path / "split.json")
    assert data.load_split(tmp_path / "split.json") == found.split
    recipe = load_recipe("demo")  # the file decides, also without data.inner_fraction
    again = datasets.read_splits(recipe, tiles, tmp_path / "split.json")
    assert (again.split.train, again.split.inner) == (found.split.train, found.split.inner)
    mine = {"validation_patients": list(found.split.held_out_groups)}
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    drawn = datasets.read_splits(load_recipe("demo", UNBIASED), tiles, tmp_path / "mine.json")
    assert drawn.inner.tiles
    assert drawn.split.held_out_groups == found.split.held_out_groups
    published = load_recipe("demo", {"protocol": "published"})
    assert not datasets.read_splits(published, tiles, tmp_path / "split.json").inner.tiles


@pytest.mark.long
def test_a_run_records_its_inner_share_and_who_chose(tiles, tmp_path):
    """The epochs' scores are of the inner share, the summary's of the held-out images; --resume and eval know both."""
    overrides = {
        "data": {"inner_fraction": 0.25, "size": 32, "batch_size": 4, "num_threads": 1},
        "model": {"base_channels": 4},
        "training": {"epochs": 2, "device": "cpu"},
        "protocol": "unbiased",
    }
    recipe = load_recipe("demo", overrides)
    summary = api.train(recipe, tiles, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    split = data.load_split(tmp_path / "run" / "split.json")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {record["validation"]["num_images"] for record in records} == {len(split.inner)} == {facts["inner_images"]}
    assert summary["num_images"] == len(split.val)
    assert summary["protocol"] == "unbiased"
    assert summary["chosen_by"] == "an inner share of the training patients; the scored images chose nothing"
    assert facts["inner_patients"] == list(split.inner_groups)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "inner share" in page
    assert "an inner share of the training patients; the scored images chose nothing" in page
    found = api.evaluate(tmp_path / "run", tiles, device="cpu")
    assert found["num_images"] == len(split.val), "patients that chose the epoch are not scored"
    # Another draw must not move patients when the run is resumed.
    (tmp_path / "run" / "config.toml").write_text(
        tomli_w.dumps(as_dict(replace(recipe, data=replace(recipe.data, split_seed=9))))
    )
    (tmp_path / "run" / "summary.json").unlink()
    again = api.resume(tmp_path / "run", console=Console(quiet=True))
    assert again["tasks"] == summary["tasks"]
    assert again["chosen_by"] == summary["chosen_by"]


def test_the_command_line_sets_the_protocol(tiles, capsys):
    assert main(["train", "demo", "--data", str(tiles), "--print-config", "--set", "protocol=published"]) == 0
    assert 'protocol = "published"' in capsys.readouterr().out
