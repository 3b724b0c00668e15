"""Trainings on data sets side by side: their split, their scores, their heads, interruptions and ranks."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import side_by_side
from helpers.runs import killed_at
from helpers.side_by_side import recipe_of, write_sets
from helpers.tiles import random_pixels, write_image
from torch.multiprocessing.spawn import spawn

from fastmtl import api, data
from fastmtl.builders import components, datasets
from fastmtl.builders.class_shares import with_class_shares
from fastmtl.data import identifier_key
from fastmtl.distributed import World
from fastmtl.training.checkpoint_names import history
from fastmtl.training.eval_loop import evaluate
from fastmtl.training.fingerprint import fingerprint
from fastmtl.training.run_dir import RunFolder
from fastmtl.training.trainer import Trainer

CPU = torch.device("cpu")
SCORES = ["colon/gland", "lung/gland", "lesion", "histology"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def run(root):
    """The uninterrupted run, on batches of one set."""
    out = root / "run"
    api.train(_recipe(root), root, out)
    return out


def _recipe(root, *, balancer="pcgrad", **data):
    training = {"checkpoint_steps": 2, "average": "ema", "average_decay": 0.5, "spike_factor": 50.0}
    return recipe_of(root, data={"sets_temperature": 2.0, **data}, training=training, balancer={"name": balancer})


def test_no_patient_is_on_two_sides_also_in_different_sets(root):
    recipe = recipe_of(root, data={"test_fraction": 0.2, "val_fraction": 0.3})
    splits = datasets.read_splits(recipe, root)
    sides = [splits.train, splits.validation, splits.test]
    groups = [{identifier_key(tile.group) for tile in side.tiles} for side in sides]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 10
    both = [tile.id.split("/")[0] for side in sides for tile in side.tiles if tile.group == "P03"]
    assert set(both) == {"colon", "lung"}  # a patient of both, on one side
    assert sum(len(side) for side in sides) == 32


def test_patients_of_sets_in_other_spellings_and_unread_columns_of_patients_are_told(tmp_path):
    root = write_sets(tmp_path)
    for name in ("colon", "lung"):
        found = data.read_dataset(root / name)
        rows = ["image,mask,label,patient,case_id" if name == "colon" else "image,mask,label,scan,case_id"]
        for number, tile in enumerate(found.tiles):
            patient = tile.group.lower() if name == "colon" else f"s{number}"
            files = (path.relative_to(root).as_posix() for path in (tile.image, tile.mask))
            rows.append(",".join([*files, found.class_names[tile.label], patient, tile.group]))
        (root / f"{name}.csv").write_text("\n".join(rows))
    sets = {"colon": {"data": "colon.csv"}, "lung": {"data": "lung.csv", "options": {"patient": r"(.*)"}}}
    told = "\n".join(map(str, datasets.read_splits(recipe_of(root, data={"sets": sets}), root).problems))
    assert "lung.csv: every tile is its own patient" in told
    assert "lung.csv: column 'case_id' is not read as patients" in told
    sets = {"colon": {"data": "colon.csv"}}
    splits = datasets.read_splits(recipe_of(root, data={"sets": sets}), root)
    told = "\n".join(map(str, splits.problems))
    assert "is taken for 'P0" in told or "is taken for 'p0" in told
    assert splits.summary[0].startswith("patients: 10,")


def test_scores_are_of_each_set(run):
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary["tasks"]) == list(summary["higher_is_better"]) == SCORES
    assert {"lung/gland"} <= set(summary["patients"]["intervals"]) <= set(SCORES)
    primary = [summary["tasks"][name][key] for name, key in zip(SCORES, ["dice"] * 2 + ["accuracy"] * 2, strict=True)]
    assert summary["score"] == pytest.approx(sum(primary) / 4)
    for record in RunFolder(run).records():
        assert list(record["validation"]["tasks"]) == SCORES
        assert set(record["loss"]) == {"gland", "lesion", "histology"}


def test_a_score_of_a_set_is_that_of_its_images_alone(root):
    recipe = recipe_of(root, data={"val_batch_size": 5})
    whole = datasets.read_data(recipe, root)
    tasks = components.build_tasks(recipe, whole.class_names, whole.classes)
    model = side_by_side.Pooled(tasks)

    def scores(dataset):
        with components.build_loader(recipe, dataset, tasks, train=False, device=CPU) as loader:
            return evaluate(model, tasks, loader, device=CPU)

    found = scores(whole)
    for number, own in enumerate(("colon", "lung")):
        alone = scores(whole.subset(tile.id for tile in whole.tiles if tile.label == number))
        assert alone["tasks"][f"{own}/gland"] == found["tasks"][f"{own}/gland"]
        task = {"colon": "lesion", "lung": "histology"}[own]
        assert alone["tasks"][task] == found["tasks"][task]
        assert alone["loss"][task] == pytest.approx(found["loss"][task])  # the mean over the images of this set
    assert found["num_images"] == 32


def test_the_report_shows_the_sets(run):
    page = (run / "report.html").read_text()
    assert "<h2>Data sets</h2>" in page
    assert "gland, histology" in page
    assert all(f"{name}: " in page for name in SCORES)
    assert json.loads((run / "run.json").read_text())["sets"]["lung"]["tasks"] == ["gland", "histology"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("balancer", "batches"),
    [
        ("famo", "one"),
        pytest.param("pcgrad", "one", marks=pytest.mark.slow),
        pytest.param("gradnorm", "mixed", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_continues_bit_for_bit_in_the_middle_of_an_epoch(balancer, batches, root, tmp_path, monkeypatch):
    recipe = _recipe(root, balancer=balancer, sets_batches=batches)
    api.train(recipe, root, tmp_path / "whole")
    killed_at(lambda: api.train(recipe, root, tmp_path / "run"), monkeypatch, Trainer, "step", 12)
    assert history(tmp_path / "run" / "checkpoints")
    api.train(recipe, root, tmp_path / "run")
    found, wanted = fingerprint(tmp_path / "run"), fingerprint(tmp_path / "whole")
    assert found == wanted
    assert "balancer" in found


def test_a_batch_of_one_set_computes_the_heads_of_its_tasks_alone(root):
    recipe = recipe_of(root)
    dataset = datasets.read_data(recipe, root)
    tasks = components.build_tasks(recipe, dataset.class_names, dataset.classes)
    model = components.build_model(recipe, tasks, CPU)
    balancer = components.build_balancer(recipe)
    optimizer = torch.optim.AdamW([*model.parameters(), *balancer.parameters()], lr=1e-2)
    trainer = Trainer(model, tasks, balancer, optimizer, recipe.training)
    heads = {name: part for group in (model.decoders, model.heads) for name, part in group.named_children()}
    ran = []
    for name, head in heads.items():
        head.register_forward_hook(lambda *_, name=name: ran.append(name))
    with components.build_loader(recipe, dataset, tasks, train=True, device=CPU) as loader:
        for batch in loader:
            before = {name: [p.clone() for p in head.parameters()] for name, head in heads.items()}
            ran.clear()
            losses, done = trainer.step(batch)
            assert set(ran) == set(losses) == set(batch.tasks)
            assert len(done["weights"]) == len(done["norms"]) == 2
            for name, head in heads.items():
                moved = [not torch.equal(p, old) for p, old in zip(head.parameters(), before[name], strict=True)]
                assert any(moved) == (name in batch.tasks)


def test_the_rows_of_gradients_do_not_grow_with_the_number_of_sets(root):
    """The arena of a step has a row for each task of its set, whatever the number of tasks and sets."""
    more = [{"name": f"s{n}", "data": "lung", "tasks": [f"t{n}"]} for n in range(6)]
    sets = [{"name": "s", "data": "lung", "tasks": ["gland", "lesion", "histology"]}, *more]
    tasks = {f"t{n}": {"kind": "classification"} for n in range(6)}
    recipe = recipe_of(root, data={"sets": sets}, tasks=tasks)
    balancer = components.build_balancer(recipe)
    parameter = torch.nn.Parameter(torch.ones(8))
    for number in range(6):
        balancer.backward({f"t{number}": parameter.sum()}, [parameter])
    (arena,) = {one.arena for one in balancer.balancers.values()}
    assert arena.rows.shape[0] == 1


def test_the_memory_of_a_step_does_not_grow_with_the_number_of_tasks(root):
    """The bytes that a step of one set keeps for its backward passes, with 2 and with 8 sets of a decoder each."""

    def kept(number):
        more = [{"name": f"s{n}", "data": "lung", "tasks": [f"t{n}"]} for n in range(number)]
        first = {"name": "s", "data": "lung", "tasks": ["gland", "lesion", "histology"]}
        tasks = {f"t{n}": {"kind": "binary_segmentation"} for n in range(number)}
        recipe = recipe_of(root, data={"sets": [*more, first]}, tasks=tasks)
        dataset = datasets.read_data(recipe, root)
        tasks = components.build_tasks(recipe, dataset.class_names, dataset.classes)
        model = components.build_model(recipe, tasks, CPU)
        balancer = components.build_balancer(recipe)
        trainer = Trainer(model, tasks, balancer, torch.optim.SGD(model.parameters(), lr=0.1), recipe.training)
        sizes = []
        with components.build_loader(recipe, dataset, tasks, train=True, device=CPU) as loader:
            batch = next(batch for batch in loader if batch.set == "s0")

            def count(tensor):
                sizes.append(tensor.numel() * tensor.element_size())
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                trainer.step(batch)
        maps = {id(target) for name, target in batch.targets.items() if name.startswith("t")}
        return sum(sizes), len(maps)

    assert kept(2) == kept(8)


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does(root):
    spawn(side_by_side.main, args=(str(root / "rendezvous"), str(root)), nprocs=2)
    ranks = [torch.load(root / f"{rank}.pt") for rank in range(2)]
    for number, (balancer, batches) in enumerate(side_by_side.CASES):
        wanted, losses = side_by_side.trained(root, World(), balancer, sets_batches=batches)
        for weights, found in (rank[number] for rank in ranks):
            assert found == pytest.approx(losses, rel=1e-4)
            for name, value in wanted.items():
                torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)
            assert all(torch.equal(value, ranks[0][number][0][name]) for name, value in weights.items())


@pytest.mark.parametrize("batches", ["one", "mixed"])
def test_masks_of_two_sets_are_read_by_the_tasks_of_each(batches, tmp_path):
    """Binary masks of 0 and 255 in one set, maps of three classes in the other: the same column, other values."""
    root = write_sets(tmp_path)
    for path in (root / "lung").glob("*/label/*.png"):
        write_image(path, (random_pixels(int(path.stem[1:3]), 32)[..., 0] % 3).astype(np.uint8))
    recipe = recipe_of(
        root,
        data={"sets": {"lung": {"tasks": ["cells", "histology"]}}, "sets_batches": batches},
        tasks={"cells": {"kind": "multiclass_segmentation", "structures": ["background", "tumor", "stroma"]}},
    )
    dataset = datasets.read_data(recipe, root)
    tasks = components.build_tasks(recipe, dataset.class_names, dataset.classes)
    assert datasets.check_maps(tasks, [dataset], train=dataset) == []
    seen = set()
    with components.build_loader(recipe, dataset, tasks, train=True, device=CPU) as loader:
        for batch in loader:
            for row, name in enumerate(batch.ids):
                own, other = ("cells", "gland") if name.startswith("lung") else ("gland", "cells")
                labels = dict(zip(recipe.tasks, batch.has_label[row].tolist(), strict=True))
                assert labels[own]
                assert not labels[other]
                assert not batch.targets[other][row].any()
                seen |= {(own, int(value)) for value in batch.targets[own][row].unique()}
    assert seen == {("gland", 0), ("gland", 1), ("cells", 0), ("cells", 1), ("cells", 2)}


@pytest.mark.long
@pytest.mark.parametrize("batches", ["one", "mixed"])
def test_stages_views_and_the_loss_as_monitor_with_sets(batches, root, tmp_path):
    first = {"name": "first", "epochs": 1, "tasks": ["gland", "histology"]}
    stages = [first, {"name": "all", "epochs": 1, "balancer": {"name": "linear", "weights": [1.0, 2.0, 3.0]}}]
    training = {"tta": ["h"], "monitor": "loss", "gradient_stats_every": 1}
    recipe = recipe_of(root, data={"sets_batches": batches, "test_fraction": 0.2}, training=training, stages=stages)
    summary = api.train(recipe, root, tmp_path / "run")
    assert list(summary["tasks"]) == list(summary["test"]["tasks"]) == SCORES
    records = RunFolder(tmp_path / "run").records()
    assert [list(record["loss"]) for record in records] == [["gland", "histology"], ["gland", "lesion", "histology"]]
    losses = records[1]["validation"]["loss"]
    weights = {"gland": 1.0, "lesion": 2.0, "histology": 3.0}
    wanted = sum(weights[name] * loss for name, loss in losses.items())
    assert records[1]["validation"]["weighted_loss"] == pytest.approx(wanted)


def test_class_shares_are_those_of_the_draws(root):
    """The set with twice the weight of another shows its classes twice as often, whatever its size."""
    sets = {"colon": {"weight": 2.0, "tasks": ["gland", "lesion", "kind"]}, "lung": {"weight": 1.0}}
    tasks = {"kind": {"kind": "classification", "logit_adjustment": 1.0}}
    classes = {"label": ["normal", "polyp", "adeno", "benign", "squamous"]}
    data = {"sets": sets, "classes": classes, "balance_by": "site"}  # which only the balanced sampler uses
    recipe = recipe_of(root, data=data, tasks=tasks)
    lung = recipe.data.sets[1]
    both = replace(recipe.data, sets=[recipe.data.sets[0], replace(lung, tasks=[*lung.tasks, "kind"])])
    recipe = replace(recipe, data=both)
    found = with_class_shares(recipe, datasets.read_data(recipe, root)).tasks["kind"]["class_shares"]
    assert sum(found[:2]) == pytest.approx(2 / 3)
    assert found[2:] == pytest.approx([8 / 60, 6 / 60, 6 / 60])
