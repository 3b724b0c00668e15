"""Two-task recipes on batches from memory, and their stages."""

from __future__ import annotations

import pytest
import tomli_w
import torch

from fastmtl.builders import components
from fastmtl.config import load_recipe
from fastmtl.protocols import Observer
from fastmtl.training.errors import Interrupted
from fastmtl.training.stages import Stages
from helpers.memory_loader import CLASSES, MemoryLoader


class HeldOut(MemoryLoader):
    """The same images in every epoch."""

    def __iter__(self):
        self.epoch = 0
        return super().__iter__()


TWO = [
    {"name": "outline", "epochs": 2, "tasks": ["mask"]},
    {"name": "kind", "epochs": 2, "tasks": ["side"], "freeze": ["encoder"], "start": "best"},
]


class Records(Observer):
    def __init__(self):
        self.epochs, self.steps = [], []

    def on_step(self, step, epoch, batch, num_batches, record):
        self.steps.append((step, epoch, sorted(record["loss"])))

    def on_epoch(self, record):
        self.epochs.append(record)


def recipe_of(folder, stages=(), **tables):
    """A recipe of the two tasks that MemoryLoader has."""
    values = {
        "tasks": {"mask": {"kind": "binary_segmentation"}, "side": {"kind": "classification"}},
        "model": {"name": "joint_unet", "preset": "tiny"},
        "data": {"size": 32},
        "balancer": {"name": "pcgrad"},
        "training": {"precision": "float32", "log_every": 2, "epochs": 2},
        "optimizer": {"lr": 3e-3, "warmup": 0.0},
        "stages": list(stages),
    }
    for name, table in tables.items():
        values[name] = {**values[name], **table} if "name" not in table else table
    path = folder / "two.toml"
    path.write_text(tomli_w.dumps(values))
    return load_recipe(path)


def stages_for(recipe, folder, observers=()):
    tasks = components.build_tasks(recipe, CLASSES)
    model = components.build_model(recipe, tasks, torch.device("cpu"))
    return Stages(recipe, model, tasks, device=torch.device("cpu"), folder=folder, observers=observers)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


def cut_and_resumed(recipe, folder, stop_after):
    """As `run`, stopped after that step and resumed by new objects."""
    first, loader = stages_for(recipe, folder), MemoryLoader()

    def stopping(batch, epoch, number):
        if 4 * epoch + number + 1 == stop_after:
            first.stop()
        return batch

    loader.spoil = stopping
    first.begin(loader)
    with pytest.raises(Interrupted, match=f"step {stop_after}"):
        first.fit(loader, HeldOut(seed=5))
    second, fresh = stages_for(recipe, folder), MemoryLoader()
    torch.manual_seed(123)
    second.check()
    second.resume(fresh)
    second.fit(fresh, HeldOut(seed=5))
    return second


def run(recipe, folder, observers=()):
    stages, loader = stages_for(recipe, folder, observers), MemoryLoader()
    stages.check()
    stages.begin(loader)
    stages.fit(loader, HeldOut(seed=5))
    return stages
