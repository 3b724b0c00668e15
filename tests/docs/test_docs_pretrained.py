"""The recipe and the commands of the page on pretrained encoders are valid."""

import itertools
import shlex

import pytest
import torch
from helpers.pages import blocks

from fastmtl.builders import components
from fastmtl.config import load_recipe, parse_overrides
from fastmtl.training.stages import Stages
from fastmtl.utils.torchvision_guard import make_torchvision_importable

BLOCKS = {block.language: block.text for block in blocks() if block.page == "pretrained.md"}


def test_the_recipe_can_be_trained(tmp_path):
    make_torchvision_importable()
    pytest.importorskip("segmentation_models_pytorch", reason="extra models is not installed")
    path = tmp_path / "mine.toml"
    path.write_text(BLOCKS["toml"], encoding="utf-8")
    recipe = load_recipe(path)
    assert [(stage.freeze, stage.keep_optimizer) for stage in recipe.stages] == [(["encoder"], False), ([], True)]
    tasks = components.build_tasks(recipe, ["Normal", "Polyp"])
    model = components.build_model(recipe, tasks, torch.device("cpu"), trained=True)
    Stages(recipe, model, tasks, device=torch.device("cpu"), folder=tmp_path).check()


def test_the_commands_name_a_recipe_and_its_keys():
    found = []
    for line in BLOCKS["sh"].splitlines():
        program, command, recipe, *rest = shlex.split(line)
        assert (program, command) == ("fastmtl", "train")
        sets = [value for flag, value in itertools.pairwise(rest) if flag == "--set"]
        found.append(load_recipe(recipe, parse_overrides(sets)).model["weights"])
    assert found == ["imagenet", "tf_efficientnet_lite0.safetensors"]
