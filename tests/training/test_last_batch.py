"""A last batch of one image: left out, with a note, only if BatchNorm would get one value per channel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiles import TARGETS, write_folder
from torch import nn

from fastmtl import config, data, models
from fastmtl.builders import components
from fastmtl.cli import main
from fastmtl.data.loading.samplers import Sampler
from fastmtl.models import Output

RECIPE = """
extends = "demo"
without = ["tasks", "model", "balancer"]
[data]
size = 32
batch_size = {batch}
augmentation = {{}}
[tasks.mask]
kind = "binary_segmentation"
[model]
name = "{model}"
preset = "tiny"
[balancer]
name = "linear"
[training]
epochs = 2
precision = "float32"
"""
POOLED = "deeplabv3plus"  # one branch sees the mean of the whole image


def sampler(**options) -> Sampler:
    settings = {"batch_size": 4, "seed": 0, "shuffle": True, "balanced": False, "pairs": None, "open_slides": 0}
    settings |= {"per_slide": 0, "drop_last": False, "rank": 0, "world_size": 1, "drop_single": True}
    return Sampler(**settings | options)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> data.Dataset:
    return write_folder(tmp_path_factory.mktemp("tiles"), {"A": 7, "B": 6}, size=32)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", range(1, 15))
def test_no_batch_of_one_beside_larger_ones(tiles, batch_size, world_size):
    """A single image on all ranks is left out; if there are more, each rank gets two, of which some may not count."""
    left_out = 13 % (batch_size * world_size) == 1 and batch_size > 1
    counted = {epoch: [] for epoch in range(3)}
    for rank in range(world_size):
        one = sampler(batch_size=batch_size, rank=rank, world_size=world_size)
        without = sampler(batch_size=batch_size, rank=rank, world_size=world_size, drop_single=False)
        for epoch, seen in counted.items():
            plans, others = one.plans(tiles.tiles, epoch), without.plans(tiles.tiles, epoch)
            assert len(plans) == one.num_batches(tiles.tiles) == len(others) - left_out
            assert all(len(plan.samples) > 1 for plan in plans) or batch_size == 1
            for plan, other in zip(plans, others, strict=False):
                assert np.array_equal(plan.samples[plan.counted], other.samples[other.counted])
                seen += plan.samples[plan.counted].tolist()
    assert all(len(set(seen)) == len(seen) == 13 - left_out for seen in counted.values())


def test_another_image_is_left_out_each_epoch(tiles):
    seen = [np.concatenate([plan.samples for plan in sampler().plans(tiles.tiles, epoch)]) for epoch in range(40)]
    assert all(len(set(epoch.tolist())) == 12 for epoch in seen)
    assert len({(set(range(13)) - set(epoch.tolist())).pop() for epoch in seen}) > 6


@pytest.mark.parametrize("name", [name for name in models.list_models() if name != "small_unet_film"])
def test_the_networks_that_take_one_image_are_known(name):
    """The check is the network's own forward pass, and leaves it and the random state as they were."""
    tasks = {"mask": Output("map", 1)}
    try:
        model = models.create_model(name, tasks=tasks, preset="tiny")
    except (ValueError, ImportError) as error:
        pytest.skip(str(error))
    recipe = config.load_recipe("demo", {"data": {"size": 32 * max(1, getattr(model, "stride", 16) // 32)}})
    model.train()
    before, drawn = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    takes = components.takes_one_image(recipe, model, 1, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    fails = False
    try:
        with torch.no_grad():
            model(components.empty_batch(recipe, 1, 1, torch.device("cpu")))
    except ValueError as error:
        fails = "more than 1 value per channel" in str(error)
    assert takes is not fails
    if name in (POOLED, "joint_unet"):
        assert takes is (name == "joint_unet")


def test_another_error_of_a_network_is_left_to_its_first_batch():
    class Broken(nn.Module):
        def forward(self, batch):
            raise ValueError("something else")

    assert components.takes_one_image(config.load_recipe("demo"), Broken(), 1, torch.device("cpu"))


def train(folder: data.Dataset, out: Path, batch: int, model: str = POOLED, more: tuple[str, ...] = ()) -> int:
    recipe = out.parent / f"{out.name}.toml"
    recipe.write_text(RECIPE.format(batch=batch, model=model))
    return main(["train", str(recipe), "--data", str(folder.root), "--out", str(out), *more])


def test_a_training_says_what_it_leaves_out_and_goes_on(tiles, tmp_path, capsys):
    count = training_images(tiles, tmp_path)
    assert train(tiles, tmp_path / "run", batch=count - 1) == 0
    said = "".join(capsys.readouterr())
    assert "note: a batch of one image gives BatchNorm of deeplabv3plus one value per channel" in " ".join(said.split())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line).get("step", 0) for line in lines) == 2


def training_images(tiles: data.Dataset, folder: Path) -> int:
    """How many the recipe's own split leaves to train on."""
    from fastmtl.builders import datasets

    path = folder / "count.toml"
    path.write_text(RECIPE.format(batch=4, model=POOLED))
    return len(datasets.read_splits(config.load_recipe(path), tiles.root, None).train)


def test_batches_of_one_are_refused_before_training(tiles, tmp_path, capsys):
    assert train(tiles, tmp_path / "run", batch=1) != 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert "data.batch_size is 1, but a batch of one image gives BatchNorm of deeplabv3plus" in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_older_positions_are_still_positions(tiles):
    """A loader state from before there was the choice."""
    make = lambda **more: data.TileLoader(  # noqa: E731
        tiles.tiles, targets=TARGETS, size=32, batch_size=4, shuffle=True, **more
    )
    loader = make(drop_single=True)
    state = loader.state_dict()
    assert state["drop_single"] is True
    loader.load_state_dict({key: value for key, value in state.items() if key != "drop_single"})
    make().load_state_dict(state)  # the position is valid without it too
