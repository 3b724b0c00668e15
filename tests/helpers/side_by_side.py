"""Two small data sets side by side, with a task in common and one of their own, and a recipe of both."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastmtl.builders import components, datasets
from fastmtl.config import Recipe, load_recipe
from fastmtl.distributed import World
from fastmtl.protocols import Batch
from fastmtl.training.set_shares import SetShares
from fastmtl.training.trainer import Trainer
from helpers.tiles import random_pixels, write_image

COLON = {"normal": 6, "polyp": 6}
LUNG = {"adeno": 8, "benign": 6, "squamous": 6}
RECIPE = """
extends = "demo"
without = ["tasks"]

[data]
generator = ""
size = 32
batch_size = 4

[[data.sets]]
name = "colon"
data = "colon"
tasks = ["gland", "lesion"]

[[data.sets]]
name = "lung"
data = "lung"
tasks = ["gland", "histology"]

[tasks.gland]
kind = "binary_segmentation"

[tasks.lesion]
kind = "classification"

[tasks.histology]
kind = "classification"

[model]
base_channels = 2

[training]
epochs = 2
precision = "float32"
log_every = 1
"""


def write_sets(root: Path) -> Path:
    """The folders colon and lung, and recipe.toml. Patients, two tiles each, have the same names in both."""
    for seed, (name, classes) in enumerate({"colon": COLON, "lung": LUNG}.items()):
        number = 0
        for label, count in classes.items():
            for _ in range(count):
                stem = f"P{number // 2:02d}-{number}"
                write_image(root / name / label / "image" / f"{stem}.png", random_pixels(1000 * seed + number, 32))
                mask = random_pixels(1000 * seed + 500 + number, 8)[..., 0] > 127
                write_image(
                    root / name / label / "label" / f"{stem}.png", np.kron(mask, np.ones((4, 4))).astype(np.uint8) * 255
                )
                number += 1
    (root / "recipe.toml").write_text(RECIPE)
    return root


def recipe_of(root: Path, **changes: Any) -> Recipe:
    """The recipe of `write_sets`; `changes` as for `load_recipe`."""
    return load_recipe(root / "recipe.toml", changes)


def trained(root: Path, world: World, balancer: str, **data: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Weights and mean losses after an epoch of SGD on this rank's part of the batches of four."""
    changes = {"data": {"batch_size": 4 // world.size, "decode": "cpu", **data}, "balancer": {"name": balancer}}
    recipe = recipe_of(root, **changes)
    device, dataset = torch.device("cpu"), datasets.read_data(recipe, root)
    tasks = components.build_tasks(recipe, dataset.class_names, dataset.classes)
    model = Pooled(tasks)
    made = components.build_balancer(recipe)
    optimizer = torch.optim.SGD([*model.parameters(), *made.parameters()], lr=0.1)
    config = replace(recipe.training, epochs=1, clip_norm=0.0)
    trainer = Trainer(model, tasks, made, optimizer, config, world=world)
    with components.build_loader(recipe, dataset, tasks, train=True, device=device, world=world) as loader:
        record = trainer.fit(loader)
    return dict(model.state_dict()), record["loss"]


def follow_shares(rank: int, rendezvous: str, root: str) -> None:
    """Each of two gloo ranks: the shares of three epochs that follow the gradients, written to shares-RANK.json."""
    torch.set_num_threads(1)
    world = World(rank, 2)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    try:
        recipe = recipe_of(Path(root), data={"batch_size": 4, "decode": "cpu"}, balancer={"name": "pcgrad"})
        dataset = datasets.read_data(recipe, Path(root))
        tasks = components.build_tasks(recipe, dataset.class_names, dataset.classes)
        model, balancer = Pooled(tasks), components.build_balancer(recipe)
        device = torch.device("cpu")
        names = [one.name for one in recipe.data.sets]
        moved = SetShares(names, mixed=False, zeta=(0.5, 0.5), floor=0.1, every=1, device=device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        found: list[list[float]] = []
        with components.build_loader(recipe, dataset, tasks, train=True, device=device, world=world) as loader:
            for epochs in (1, 1):
                config = replace(recipe.training, epochs=epochs, clip_norm=0.0)
                found.append(list(loader.shares))
                Trainer(model, tasks, balancer, optimizer, config, world=world, shares=moved).fit(loader)
            found.append(list(loader.shares))
        Path(root, f"shares-{rank}.json").write_text(json.dumps(found))
    finally:
        world.close()


class Pooled(nn.Module):
    """A shared convolution and a head for each task; no layer knows of other samples."""

    def __init__(self, tasks: Sequence[Any]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh())
        outputs = {task.name: task.output for task in tasks}
        self.heads = nn.ModuleDict({name: nn.Conv2d(4, output.channels, 1) for name, output in outputs.items()})
        self.pooled = {name for name, output in outputs.items() if output.kind == "vector"}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z = self.encoder(batch.images)
        named = self.heads if batch.tasks is None else batch.tasks
        maps = {name: self.heads[name](z) for name in named}
        return {name: one.mean((2, 3)) if name in self.pooled else one for name, one in maps.items()}

    def shared_parameters(self) -> Iterable[nn.Parameter]:
        return self.encoder.parameters()


CASES = [("pcgrad", "one"), ("pcgrad", "mixed"), ("uncertainty", "one")]


def main(rank: int, rendezvous: str, root: str) -> None:
    """What each of two gloo ranks runs for tests/training/test_sets.py."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    world = World(rank, 2)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    try:
        found = [trained(Path(root), world, balancer, sets_batches=batches) for balancer, batches in CASES]
        torch.save(found, f"{root}/{rank}.pt")
    finally:
        world.close()
