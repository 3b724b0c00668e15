"""The papers' recipes: all of them build, and train at scale tiny on data in the published layouts."""

import functools
import json
import statistics

import pytest
import torch
from helpers.published import EBHI_CLASSES, write_for_recipes
from rich.console import Console

from fastmtl import api
from fastmtl.balance import create_balancer
from fastmtl.builders import components, datasets
from fastmtl.config import ConfigError, as_dict, list_recipes, load_recipe
from fastmtl.reproduce import list_papers, plan
from fastmtl.reproduce.scores import metric

PAPERS = [name for name in list_recipes() if "/" in name]
CLASSES = {
    "mask2tasks": (EBHI_CLASSES, {}),
    "joint_unet": (("homogeneous", "mitsp"), {"intensity": ("intermediate", "positive")}),
    "gi_tract": ((), {}),
    "switched_aux": (("kidney", "lung"), {"organ": ("kidney", "lung"), "source": ("HPA", "Hubmap")}),
    "unet_multi": (("cat", "dog"), {}),
}
# One of each shape of training: stages, GradNorm, pairs, metadata, auxiliary heads, learned weights.
QUICK = (
    "mask2tasks/two_stage",
    "joint_unet/dice_alpha_0.06",
    "gi_tract/contrastive_decay",
    "gi_tract/contrastive_moco",
    "gi_tract/film_day",
    "switched_aux/pvtv2_switched",
    "unet_multi/mtl_rec_learned",
)


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Paper -> a folder of its data, written once."""
    return functools.cache(lambda paper: write_for_recipes(paper, tmp_path_factory.mktemp(paper)))


def test_the_papers_have_their_rows():
    assert list_papers() == ["gi_tract", "joint_unet", "mask2tasks", "switched_aux", "unet_multi"]
    counts = {paper: sum(name.startswith(f"{paper}/") for name in PAPERS) for paper in list_papers()}
    assert counts == {"gi_tract": 18, "joint_unet": 8, "mask2tasks": 12, "switched_aux": 21, "unet_multi": 12}


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_says_what_it_reproduces(name):
    recipe = load_recipe(name)
    assert (recipe.name, recipe.paper.key) == (name, name.split("/")[0])
    assert recipe.paper.row
    assert recipe.paper.figures or recipe.paper.note
    for key in [*recipe.paper.figures, *recipe.paper.also]:
        assert key == "delta_m" or key.removeprefix("test.").split(".")[0] in recipe.tasks
    assert set(recipe.paper.spreads) <= set(recipe.paper.figures)
    assert name.split("/")[1] in recipe.paper.order or not recipe.paper.figures


@pytest.mark.parametrize(
    ("name", "folds"),
    [
        ("dice_30", [(0.967, 0.965, 0.972, 0.972, 0.973), (0.798, 0.793, 0.808, 0.799, 0.847)]),
        ("bce_15", [(0.966, 0.964, 0.972, 0.971, 0.972), (0.800, 0.806, 0.783, 0.809, 0.834)]),
        ("bce_alpha_6", [(0.940, 0.949, 0.973, 0.938, 0.959), (0.156, 0.04, 0.819, 0.16, 0.22)]),
    ],
)
def test_spreads_are_those_of_the_folds_that_the_paper_tells(name, folds):
    """Joint U-Net, tables II, V and X: mask and label."""
    paper = load_recipe(f"joint_unet/{name}").paper
    for key, values in zip(("mask.pixel_accuracy", "label.accuracy"), folds, strict=True):
        assert paper.figures[key] == pytest.approx(statistics.fmean(values), abs=1.1e-3)
        assert paper.spreads[key] == pytest.approx(statistics.stdev(values), abs=6e-4)


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_builds_its_tasks_and_balancer(name):
    for scale in ("full", "tiny", "small"):
        recipe = load_recipe(name, scale=scale)
        components.check_names(recipe)
        tasks = components.build_tasks(recipe, *CLASSES[recipe.paper.key])
        assert [task.name for task in tasks] == list(recipe.tasks)
    assert load_recipe(name, scale="tiny").training.epochs <= 2


def _networks():
    """Each network of the recipes once, with its tasks."""
    seen = {}
    for name in PAPERS:
        recipe = load_recipe(name)
        seen.setdefault(repr((recipe.model, recipe.tasks.keys())), name)
    return sorted(seen.values())


@pytest.mark.parametrize("name", ["big", "big_day", "big_frozen"])
def test_the_big_unet_starts_from_imagenet(name):
    """On images in 0..1, as in the authors' code."""
    recipe = load_recipe(f"gi_tract/{name}")
    assert recipe.model["weights"] == "imagenet"
    assert recipe.model["name"] == ("big_unet_frozen" if name == "big_frozen" else "big_unet")
    assert recipe.data.other_normalization
    assert (recipe.data.mean, recipe.data.std) == ([0.0] * 3, [1.0] * 3)


@pytest.mark.parametrize("name", _networks())
def test_a_full_network_can_be_built(name):
    recipe = load_recipe(name)
    tasks = components.build_tasks(recipe, *CLASSES[recipe.paper.key])
    with torch.device("meta"):
        model = components.build_model(recipe, tasks, torch.device("meta"), trained=True)  # without published weights
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e6


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PAPERS]
)
def test_a_recipe_trains_at_scale_tiny(name, published, tmp_path):
    recipe = load_recipe(name, {"training": {"device": "cpu"}}, scale="tiny")
    summary = api.train(recipe, published(recipe.paper.key), tmp_path / "run", console=Console(quiet=True))
    for key in recipe.paper.figures:
        organ_of_no_fixture = ".per_" in key and "organs" not in key and "segmentation" not in key
        assert key == "delta_m" or organ_of_no_fixture or metric(summary, key) is not None, key
    assert (tmp_path / "run" / "report.html").exists()
    analyses = json.loads((tmp_path / "run" / "analyses.json").read_text())
    assert analyses["failed"] == {}
    assert analyses["saliency"]
    assert analyses["features"]["maps"]


@pytest.mark.parametrize(
    ("name", "overrides", "scale", "message"),
    [
        ("demo", {}, "tiny", "recipe demo has no scale 'tiny'; it has full"),
        ("mask2tasks/pcgrad", {}, "huge", "has no scale 'huge'; it has tiny, small, full"),
        ("mask2tasks/pcgrad", {"training": {"epoch_scale": 0.0}}, "", r"training.epoch_scale must be in \(0, 1\]"),
    ],
)
def test_scales_that_do_not_fit_are_named(name, overrides, scale, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(name, overrides, scale)


def test_an_overlay_of_an_unknown_key_is_an_error_whatever_the_scale(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('extends = "demo"\n[scales.tiny.data]\nsice = 3\n')
    with pytest.raises(ConfigError, match=r"recipe mine, scales.tiny: unknown key 'data.sice'; did you mean 'size'"):
        load_recipe(path)


def test_a_recipe_can_do_without_a_task_of_its_base(tmp_path):
    recipe = load_recipe("mask2tasks/single_swin", scale="tiny")
    assert list(recipe.tasks) == ["classification"]
    path = tmp_path / "mine.toml"
    path.write_text('extends = "demo"\nwithout = ["tasks.nothing"]\n')
    with pytest.raises(ConfigError, match=r"`without` names 'tasks.nothing', which its base 'demo' does not have"):
        load_recipe(path)
    path.write_text('without = ["tasks.nothing"]\n')
    with pytest.raises(ConfigError, match="lists keys of the base it `extends`"):
        load_recipe(path)


def test_epoch_scale_multiplies_stages_once(tmp_path):
    recipe = load_recipe("mask2tasks/two_stage", {"training": {"epoch_scale": 0.1}})
    assert [stage.epochs for stage in recipe.stages] == [4, 6]
    assert recipe.training.epoch_scale == 1.0
    assert load_recipe("mask2tasks/two_stage", as_dict(recipe)) == recipe
    assert load_recipe("unet_multi/mtl", scale="small").training.epochs == round(30 * 0.22)


def test_rows_come_in_the_papers_order():
    names = [row.name for row in plan("mask2tasks", rows=["two_stage", "single_swin", "famo"])]
    assert names == ["single_swin", "famo", "two_stage"]
    with pytest.raises(ConfigError, match="mask2tasks has no row 'pcgrd'; did you mean 'pcgrad'"):
        plan("mask2tasks", rows=["pcgrd"])
    with pytest.raises(ConfigError, match="unknown paper 'mask2task'; did you mean 'mask2tasks'"):
        plan("mask2task")


def test_linear_divides_by_the_first_epochs_means():
    parameter = torch.nn.Parameter(torch.ones(()))
    balancer = create_balancer("linear", weights={"a": 0.5, "b": 1.0}, normalise=True)

    def weights(a, b):
        return balancer.backward({"a": a * parameter, "b": b * parameter})["weights"].tolist()

    assert weights(2.0, 4.0) == [0.25, 0.25]  # by itself
    assert weights(6.0, 4.0) == [0.25, 0.25]  # by the step before
    state = balancer.state_dict()
    balancer.on_epoch()
    assert weights(9.0, 9.0) == [0.125, 0.25]  # by the epoch's means, 4 and 4
    assert weights(9.0, 9.0) == [0.125, 0.25]
    other = create_balancer("linear", weights={"a": 0.5, "b": 1.0}, normalise=True)
    other.load_state_dict(state)
    other.on_epoch()
    assert other.backward({"a": parameter * 1, "b": parameter * 1})["weights"].tolist() == [0.125, 0.25]


def test_a_limit_takes_classes_evenly_and_the_same_tiles_again(published):
    recipe = load_recipe("mask2tasks/pcgrad", {"data": {"max_tiles": 14}})
    folder = datasets.read_data(recipe, published("mask2tasks"))
    kept = datasets.limited(recipe, folder)
    counts = [sum(tile.label == label for tile in kept.tiles) for label in range(6)]
    assert sorted(counts) == [2, 2, 2, 2, 3, 3]
    assert kept == datasets.limited(recipe, folder)
    assert datasets.limited(load_recipe("mask2tasks/pcgrad"), folder) is folder


def test_a_limit_takes_a_split_file_that_names_more(published, tmp_path):
    recipe = load_recipe("mask2tasks/pcgrad", {"data": {"max_tiles": 24, "folds": 0}})
    root = published("mask2tasks")
    every = sorted(datasets.read_data(recipe, root).groups)
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"validation_patients": every[::2]}), encoding="utf-8")
    found = datasets.read_splits(recipe, root, split)
    assert len(found.train) + len(found.validation) == 24
    assert {tile.group for tile in found.validation.tiles} < set(every[::2])
    split.write_text(json.dumps({"validation_patients": ["nobody"]}), encoding="utf-8")
    with pytest.raises(ValueError, match="not in"):
        datasets.read_splits(load_recipe("mask2tasks/pcgrad", {"data": {"folds": 0}}), root, split)
