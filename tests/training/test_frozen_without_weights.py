"""A part that is frozen while its weights are random learns nothing: refused before training."""

from dataclasses import replace

import pytest
import torch
from helpers.memory_loader import CLASSES
from helpers.runs import SMALL
from helpers.stages import recipe_of
from helpers.tiles import write_folder

from fastmtl import api, config, models
from fastmtl.builders import components, pretrained
from fastmtl.config import ConfigError
from fastmtl.config.parsing import merge

CPU = torch.device("cpu")
FROZEN = {"name": "heads", "epochs": 1, "freeze": ["encoder"]}
ALL = {"name": "all", "epochs": 1}


def _model(recipe):
    return components.build_model(recipe, components.build_tasks(recipe, CLASSES), CPU)


def _check(tmp_path, stages, **tables):
    recipe = recipe_of(tmp_path, stages, **tables)
    pretrained.check_frozen(recipe, _model(recipe))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            [FROZEN, ALL],
            r"stages.heads freezes 'encoder', but \d+ of its parameters are random: set model.weights to a",
        ),
        ([{**FROZEN, "freeze": ["encoder.stages.0"]}, ALL], "freezes 'encoder.stages.0', but"),
        ([{**ALL, "freeze": ["decoders.mask"]}], "stages.all freezes 'decoders.mask', but"),
    ],
)
def test_random_parts_are_refused(tmp_path, stages, message):
    with pytest.raises(ConfigError, match=message) as caught:
        _check(tmp_path, stages)
    assert "\n" not in str(caught.value)
    _check(tmp_path, stages, training={"freeze_random": True})


@pytest.mark.parametrize(
    "stages",
    [
        [ALL, FROZEN],
        [{**ALL, "tasks": ["mask"], "freeze": ["heads.side"]}],  # not trained in this stage anyway
        [ALL, {**FROZEN, "freeze": ["decoders", "encoder.stages.1"]}],
    ],
)
def test_trained_and_idle_parts_are_accepted(tmp_path, stages):
    _check(tmp_path, stages)


def test_loaded_parts_are_accepted(tmp_path):
    path = tmp_path / "weights.pt"
    source = _model(recipe_of(tmp_path))
    torch.save(source.encoder.state_dict(), path)
    _check(tmp_path, [FROZEN, ALL], model={"name": "joint_unet", "preset": "tiny", "weights": str(path)})
    torch.save(source.state_dict(), path)
    both = {**FROZEN, "freeze": ["encoder", "decoders.mask"]}
    _check(tmp_path, [both, ALL], model={"name": "joint_unet", "preset": "tiny", "weights": str(path)})


def test_training_is_refused_before_it_makes_a_folder(tmp_path):
    tiles = write_folder(tmp_path / "tiles", {"a": 8, "b": 8}, size=32).root
    recipe = config.load_recipe("demo", merge(SMALL, {"stages": [FROZEN, ALL], "training": {"epochs": 2}}))
    with pytest.raises(ConfigError, match=r"recipe demo: stages.heads freezes 'encoder', but"):
        api.train(recipe, tiles, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    allowed = replace(recipe, training=replace(recipe.training, freeze_random=True))
    api.train(allowed, tiles, tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").exists()


def test_the_frozen_big_unet_needs_weights():
    name = "gi_tract/big_frozen"
    assert config.load_recipe(name).model["weights"] == "imagenet"
    assert config.load_recipe(name, scale="small").model == config.load_recipe(name).model | {"preset": "full"}
    tiny = config.load_recipe(name, scale="tiny")
    tasks = {"organs": models.Output("map", 3)}
    model = models.create_model("big_unet_frozen", tasks, preset="tiny")
    pretrained.check_frozen(tiny, model)
    refused = replace(tiny, training=replace(tiny.training, freeze_random=False))
    message = r"model big_unet_frozen freezes 'encoder.bn1', but 2 of .* set model.weights to 'imagenet' or a file"
    with pytest.raises(ConfigError, match=message):
        pretrained.check_frozen(refused, model)


def test_weights_of_which_only_a_head_fits_are_refused(tmp_path):
    """The encoder of another architecture and a head of the same shape: nothing to start from."""
    tasks = {"label": models.Output("vector", 3)}
    other = models.create_model("joint_unet", tasks, preset="tiny")
    torch.save({key: value for key, value in other.state_dict().items() if "heads" in key}, tmp_path / "weights.pt")
    with pytest.raises(
        ValueError, match=r"another architecture than this joint_unet: .*: loaded heads.label; .* missing"
    ):
        models.create_model("joint_unet", tasks, preset="tiny", weights=tmp_path / "weights.pt")
