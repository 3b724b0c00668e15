"""Every row of `fastmtl models` at `tiny`: two steps on its paper's layout, through the loader; and the row's count."""

import functools
from dataclasses import replace

import pytest
import torch
from helpers.published import EBHI_CLASSES, write_for_recipes

from fastmtl import models
from fastmtl.builders import components, datasets, optimizers
from fastmtl.config import list_recipes, load_recipe

CPU = torch.device("cpu")
# Models in the place of a recipe's, with tasks that no recipe gives them.
OTHERS = (
    ("joint_unet_resnet34", "joint_unet/dice_15"),
    ("big_unet", "gi_tract/position"),
    ("big_unet", "gi_tract/contrastive"),
)
LABELS = {
    "joint_unet": (tuple("abcdefg"), {"intensity": ("intermediate", "positive")}),
    "mask2tasks": (EBHI_CLASSES, {}),
    "switched_aux": (("kidney", "lung"), {"organ": ("kidney", "lung"), "source": ("HPA", "Hubmap")}),
    "unet_multi": (("cat", "dog"), {}),
}


def _recipes():
    """Model and tasks -> the first recipe that has them."""
    found = {}
    for name in list_recipes():
        if "/" in name:
            recipe = load_recipe(name)
            found.setdefault((recipe.model["name"], *sorted(recipe.tasks)), name)
    for model, name in OTHERS:
        found[model, *sorted(load_recipe(name).tasks)] = name
    return found


NETWORKS = _recipes()
# A network learns what it learns with more tasks; with fewer, the same modules are built.
LARGEST = [one for one in NETWORKS if not any(one[0] == more[0] and set(one) < set(more) for more in NETWORKS)]


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Recipe -> its data set, written once a paper."""
    write = functools.cache(lambda paper: write_for_recipes(paper, tmp_path_factory.mktemp(paper)))
    return lambda recipe: datasets.read_data(recipe, write(recipe.paper.key))


def _load(network, scale):
    recipe = load_recipe(NETWORKS[network], scale=scale)
    if network[0] == recipe.model["name"]:
        return recipe
    preset = {"preset": "tiny"} if scale == "tiny" else {}
    recipe = load_recipe(NETWORKS[network], {"model": {"name": network[0]} | preset}, scale)
    # `layer` names a parameter of the recipe's own network.
    return replace(recipe, balancer={key: value for key, value in recipe.balancer.items() if key != "layer"})


def _needs(name):
    if models.model_info(name).extra:
        pytest.importorskip("transformers", reason="extra models is not installed")


def test_every_row_is_trained_here():
    for name in models.list_models():
        for label, row in models.model_info(name).rows.items():
            covered = [set(tasks) for model, *tasks in LARGEST if model == name]
            assert any(set(row.tasks) <= tasks for tasks in covered), f"{name}: {label}"


@pytest.mark.parametrize("network", LARGEST, ids=" ".join)
def test_two_steps_on_the_papers_layout(network, read):
    _needs(network[0])
    recipe = _load(network, "tiny")
    dataset = read(recipe)
    tasks = components.build_tasks(recipe, dataset.class_names, dataset.classes)
    model = components.build_model(recipe, tasks, CPU)
    loader = components.build_loader(recipe, dataset, tasks, train=True, device=CPU)
    balancer = components.build_balancer(recipe, model=model)
    optimizer = optimizers.build_optimizer(recipe, model, balancer)
    before = {name: value.clone() for name, value in model.named_parameters()}
    for _, batch in zip(range(2), loader, strict=False):
        outputs = model(batch)
        losses = {task.name: task.loss(outputs[task.name], batch) for task in tasks}
        assert all(loss.isfinite() for loss in losses.values())
        optimizer.zero_grad()
        balancer.backward(losses, shared=model.shared_parameters())
        optimizer.step()
    loader.close()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    heads = {name.split(".")[0] for name in before}
    assert {name.split(".")[0] for name in moved} >= heads - ({"encoder"} if network[0] == "big_unet_frozen" else set())


@pytest.mark.parametrize("network", NETWORKS, ids=" ".join)
def test_the_table_counts_what_the_recipe_builds(network):
    """Or somebody reads one number in `fastmtl models` and trains another network."""
    _needs(network[0])
    recipe = _load(network, "full")
    with torch.device("meta"):
        model = components.build_model(
            recipe,
            components.build_tasks(recipe, *LABELS.get(recipe.paper.key, ((), {}))),
            torch.device("meta"),
            trained=True,
        )
    count = sum(value.numel() for value in model.parameters())
    assert count in {row.parameters for row in models.model_info(network[0]).rows.values()}
