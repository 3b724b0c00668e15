"""Several runs as one: `fastmtl eval` and `fastmtl predict` average their networks' outputs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from helpers.pixel_model import lines_of
from helpers.runs import untrained
from helpers.stain import tissue
from helpers.tiles import random_pixels, write_folder, write_image

from fastmtl import api, data
from fastmtl.api.ensembles import load
from fastmtl.cli import main
from fastmtl.protocols import Batch
from fastmtl.training.run_dir import RunError

NEITHER = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs: the second of other images, the third with another task more."""
    home = tmp_path_factory.mktemp("runs")
    third = {"tasks": {"further": {"kind": "reconstruction"}}}
    return [
        untrained(home / "one"),
        untrained(home / "two", training={"seed": 1}, data=NEITHER),
        untrained(home / "three", training={"seed": 2}, **third),
    ]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "tiles", {"a": 4, "b": 4}, size=32)


def _pixels():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 32, 32, generator=generator)


def _outputs(trained, pixels):
    """The network's outputs for RGB images in 0..1."""
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (
            trained.recipe.data.mean or (0.485, 0.456, 0.406),
            trained.recipe.data.std or (0.229, 0.224, 0.225),
        )
    )
    batch = Batch((pixels - mean) / std, {}, torch.ones(2, len(trained.tasks), dtype=torch.bool))
    with torch.no_grad():
        return trained.model.eval()(batch)


def test_outputs_are_the_mean_over_the_runs(runs):
    alone = [_outputs(load(run, None, "cpu", ()), _pixels()) for run in runs]
    together = load(runs[0], None, "cpu", (), runs[1:])
    found = _outputs(together, _pixels())
    assert list(found) == ["segmentation", "classification"] == [task.name for task in together.tasks]
    for name, output in found.items():
        torch.testing.assert_close(output, sum(one[name] for one in alone) / 3, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found["segmentation"], alone[0]["segmentation"], atol=1e-3)


def test_views_of_an_ensemble(runs):
    together, turned = load(runs[0], None, "cpu", ["h"], runs[1:2]), load(runs[0], None, "cpu", (), runs[1:2])
    expected = _outputs(turned, _pixels())["segmentation"] + _outputs(turned, _pixels().flip(-1))["segmentation"].flip(
        -1
    )
    torch.testing.assert_close(_outputs(together, _pixels())["segmentation"], expected / 2)


def test_eval_and_the_patients_of_all_runs(runs, tiles, tmp_path, capsys):
    assert main(["eval", str(runs[0]), "--with", str(runs[1]), "--data", str(tiles.root), "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ensemble"] == [str(runs[0]), str(runs[1])]
    assert found["num_images"] == 8
    assert found["loss"] != api.evaluate(runs[0], tiles.root, device="cpu")["loss"]
    knows = untrained(tmp_path / "knows", training={"seed": 4})
    facts = json.loads((knows / "run.json").read_text())
    (knows / "run.json").write_text(json.dumps(facts | {"training_patients": [tiles.groups[0]]}))
    found = api.evaluate(runs[0], tiles.root, others=[knows], device="cpu")
    assert found["num_images_of_training_patients_left_out"] == 2


def test_predictions_of_an_ensemble_are_its_own(runs, tmp_path, capsys):
    write_image(tmp_path / "images" / "tile.png", random_pixels(3, 32))
    command = ["predict", str(runs[0]), str(tmp_path / "images"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*command, "--with", str(runs[1]), str(runs[2])]) == 0
    (line,) = lines_of(tmp_path / "out" / "predictions.jsonl")
    assert set(line) >= {"segmentation", "classification"}
    assert "further" not in line
    capsys.readouterr()
    assert main(command) == 1
    assert "already holds predictions with other recipe" in capsys.readouterr().err
    assert main([*command, "--with", str(runs[1]), str(runs[2])]) == 0
    assert "0 images, 1 were there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"size": 64}}, "has data.size = 64 and .* 32: networks that read images differently"),
        ({"data": {"group_by": "tile"}}, "has data.group_by = 'tile' and .* could not be left out"),
        ({"tasks": {"segmentation": {"kind": "reconstruction"}}}, "'segmentation' of .* has output"),
        ({"tasks": {"classification": {"logit_adjustment": 1.0}}}, "'classification' of .* has logit_adjustment 1.0"),
    ],
)
def test_runs_that_cannot_be_averaged_are_told(runs, tmp_path, changes, message):
    other = untrained(tmp_path / "other", **changes)
    with pytest.raises(RunError, match=message):
        load(runs[0], None, "cpu", (), [other])


def test_stains_with_other_targets(runs):
    from fastmtl.api.ensembles import _check_alike, _same_target

    pink, purple = (data.StainNormalizer(target=tissue(seed)[0]) for seed in (1, 2))
    again = data.StainNormalizer(target=tissue(1)[0])
    assert _same_target(None, None)
    assert _same_target(pink, again)
    assert not _same_target(pink, purple)
    assert not _same_target(pink, None)
    first, other = (load(path, None, "cpu", ()) for path in runs[:2])
    _check_alike(first._replace(stain=pink), other._replace(stain=again), *runs[:2])
    with pytest.raises(RunError, match="different targets"):
        _check_alike(first._replace(stain=pink), other._replace(stain=purple), *runs[:2])


def test_a_run_that_is_named_twice(runs):
    with pytest.raises(RunError, match="is named twice"):
        load(runs[0], None, "cpu", (), [runs[1], runs[0].parent / "two" / ".." / "one"])


def test_runs_without_a_common_task_and_queries(runs, tmp_path):
    from fastmtl.api import ensembles

    one = load(runs[0], None, "cpu", ())
    none = one._replace(recipe=replace(one.recipe, tasks={"other": {"kind": "reconstruction"}}))
    with pytest.raises(RunError, match="have no task in common"):
        ensembles._ensemble([one, none], [runs[0], tmp_path])
