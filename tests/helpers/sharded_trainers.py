"""What gloo ranks run for tests/training/test_fsdp2.py: trainers whose model FSDP2 divides, and one process beside
them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmtl import balance
from fastmtl.config import OptimizerConfig, TrainingConfig
from fastmtl.distributed import World
from fastmtl.protocols import Batch
from fastmtl.tasks import create_task
from fastmtl.training.errors import Interrupted
from fastmtl.training.lr_schedule import Schedule
from fastmtl.training.sharding import shard
from fastmtl.training.trainer import Trainer
from fastmtl.training.weight_averaging import WeightAverage
from helpers.two_trainers import CLASSES, PartLoader, Records


class Network(nn.Module):
    """float64, each sample for itself; nested blocks, a parameter of the root's own, and one row for two ranks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoder = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh()), nn.Sequential(nn.Conv2d(6, 5, 1), nn.Tanh())
        )
        self.shift = nn.Parameter(torch.zeros(5))
        self.mask, self.side = nn.Conv2d(5, 1, 1), nn.Linear(5, len(CLASSES))
        self.double()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z = self.encoder(batch.images.double()) + self.shift[:, None, None]
        return {"mask": self.mask(z), "side": self.side(z.mean((2, 3)))}

    def shared_parameters(self):
        return [*self.encoder.parameters(), self.shift]


def trainer(world: World, name: str, *, replicas: int = 0, fused=True, folder=None, **config) -> Trainer:
    """`replicas` 0 does not divide the model."""
    tasks = [
        create_task("binary_segmentation", "mask", 0),
        create_task("classification", "side", 1, class_names=CLASSES),
    ]
    for task, criterion in zip(tasks, (nn.functional.binary_cross_entropy_with_logits, None), strict=True):
        task.loss = _loss(task, criterion)
    model, made = Network(), balance.create_balancer(name, **OPTIONS.get(name, {}))
    if replicas:
        batch = next(iter(PartLoader(world)))
        shard(model, world, lambda: model(batch), replicas=replicas, smallest=20)
    optimizer = torch.optim.AdamW([*model.parameters(), *made.parameters()], lr=0.02, fused=True)
    settings = TrainingConfig(**{"precision": "float32", "epochs": 2, "log_every": 1, "clip_norm": 0.3} | config)
    update = balance.FusedStep(optimizer, clip_norm=settings.clip_norm) if fused else None
    schedule = Schedule(optimizer, OptimizerConfig(), 8)
    average = WeightAverage(model, "ema", decay=0.5)
    folder = folder if world.rank == 0 else None
    return Trainer(
        model, tasks, made, optimizer, settings, update=update, scheduler=schedule, average=average, folder=folder,
        world=world,
    )  # fmt: skip


OPTIONS: dict[str, dict[str, Any]] = {"famo": {"max_norm": 0.05}}


def _loss(task: Any, criterion: Any):
    """In float64, the mean over labelled samples."""

    def loss(output: Tensor, batch: Batch) -> Tensor:
        has_label = batch.has_label[:, task.column]
        if criterion is None:
            each = nn.functional.cross_entropy(output, batch.targets["side"], reduction="none")
        else:
            each = criterion(output, batch.targets["mask"].double(), reduction="none").mean((1, 2, 3))
        return (each * has_label).sum() / has_label.sum().clamp(min=1)

    return loss


def trained(world: World, name: str, **options) -> dict[str, Any]:
    made = trainer(world, name, **options)
    return _fit(made, PartLoader(world), world)


def _fit(made: Trainer, loader: PartLoader, world: World) -> dict[str, Any]:
    records: list[Any] = []
    made.observers.append(Records(records))
    made.fit(loader, PartLoader(world, seed=7))
    state = made.state_dict(loader, everywhere=True)
    kept = ("model", "average", "optimizer", "balancer")
    return {"records": records} | {name: state[name] for name in kept}
