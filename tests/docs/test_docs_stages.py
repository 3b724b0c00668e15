"""Every recipe on the page of stages and schedules is one: it loads, and its stages, balancers and heads fit."""

import re

import pytest
import torch
from helpers.paths import DOCS

from fastmtl.builders import components
from fastmtl.config import load_recipe, stages_of
from fastmtl.training.stages import Stages

PAGE = (DOCS / "stages.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.S)


@pytest.fixture(params=BLOCKS, ids=[str(number) for number in range(len(BLOCKS))])
def recipe(request, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(request.param, encoding="utf-8")
    return load_recipe(path, {"model": {"base_channels": 4}, "data": {"size": 32}})


def test_a_recipe_of_the_page_can_be_trained(recipe, tmp_path):
    components.check_names(recipe)
    tasks = components.build_tasks(recipe, ["Normal", "Polyp"])
    model = components.build_model(recipe, tasks, torch.device("cpu"))
    Stages(recipe, model, tasks, device=torch.device("cpu"), folder=tmp_path).check()


def test_the_page_has_what_it_is_about(tmp_path):
    recipes = []
    for number, block in enumerate(BLOCKS):
        path = tmp_path / f"{number}.toml"
        path.write_text(block, encoding="utf-8")
        recipes.append(load_recipe(path))
    tables = [one for recipe in recipes for one in (recipe.balancer, *(stage.balancer for stage in stages_of(recipe)))]
    names = {table.get("name") for table in tables}
    assert {"linear", "decay", "uncertainty", "gradnorm", "famo", "pcgrad"} <= names
    assert any("encoder" in stage.freeze for recipe in recipes for stage in recipe.stages)
    assert any(len({stage.auxiliary_stride for stage in recipe.stages}) == 2 for recipe in recipes)
    assert {recipe.optimizer.schedule for recipe in recipes} == {"constant", "cosine", "plateau"}
    assert {recipe.training.average for recipe in recipes} == {"", "ema", "swa"}
    assert any(recipe.optimizer.find_lr for recipe in recipes)
    assert any(recipe.training.patience for recipe in recipes)
    tiny = load_recipe(tmp_path / f"{len(BLOCKS) - 1}.toml", scale="tiny")
    assert (tiny.data.size, tiny.training.epochs) == (32, 2)
