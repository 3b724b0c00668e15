"""What gloo ranks run for tests/training/test_fsdp2.py: trainers whose model FSDP2 divides, and one process beside
them."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.multiprocessing.spawn import spawn

from benchmarks import communication
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
from helpers import models, two_trainers
from helpers.two_trainers import BATCHES, CLASSES, PartLoader, Records


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
    """Two epochs, and the whole state after them."""
    return _fit(trainer(world, name, **options), PartLoader(world), world)


def _fit(made: Trainer, loader: PartLoader, world: World, validation: PartLoader | None = None) -> dict[str, Any]:
    records: list[Any] = []
    made.observers.append(Records(records))
    message = ""
    try:
        made.fit(loader, PartLoader(world, seed=7) if validation is None else validation)
    except Interrupted as error:
        message = str(error)
    state = made.state_dict(loader, everywhere=True)
    kept = ("model", "average", "optimizer", "balancer")
    return {"message": message, "records": records, "notes": made.notes} | {name: state[name] for name in kept}


def shards(world: World) -> dict[str, int]:
    """Numbers of parameters: this rank's, and all."""
    parameters: list[Any] = list(trainer(world, "pcgrad", replicas=1).model.parameters())
    return {"own": sum(p.to_local().numel() for p in parameters), "all": sum(p.numel() for p in parameters)}


class Short(PartLoader):
    """Rank 1 has `missing` batches fewer."""

    def __init__(self, world: World, missing: int) -> None:
        super().__init__(world, seed=7)
        self.own = BATCHES - missing * (world.rank == 1)

    def __len__(self) -> int:
        return self.own

    def __iter__(self):
        for batch in super().__iter__():
            if self.batch <= self.own:
                yield batch


def unequal_validation(world: World, missing: int) -> dict[str, Any]:
    return _fit(trainer(world, "pcgrad", replicas=1), PartLoader(world), world, Short(world, missing))


def continued(world: World, folder: Path, name: str, in_validation: bool, **options) -> dict[str, Any]:
    """Rank 1 is asked to stop, in the first epoch or its validation; what is left after a new trainer goes on."""
    first, loader, validation = trainer(world, name, folder=folder, **options), PartLoader(world), Short(world, 1)

    def spoil(batch: Batch, epoch: int, number: int) -> Batch:
        first.stop_requested |= world.rank == 1 and number == 1
        return batch

    (validation if in_validation else loader).spoil = spoil
    cut = _fit(first, loader, world, validation)
    world.broadcast(None)  # rank 0 has written
    world = World(world.rank, world.size)  # as a new process has
    return resumed(world, folder, name, **options) | {"message": cut["message"]}


def resumed(world: World, folder: Path, name: str, **options) -> dict[str, Any]:
    made, loader = trainer(world, name, **options), PartLoader(world)
    torch.manual_seed(99)
    made.resume(folder / "last", loader)
    return _fit(made, loader, world, Short(world, 1))


def skipped(world: World) -> dict[str, Any]:
    """An infinite loss on rank 1 alone."""
    options = {"on_nonfinite": "skip", "max_skipped": 0.5, "epochs": 1}
    made, loader = trainer(world, "pcgrad", replicas=1, **options), PartLoader(world)
    loss = made.tasks[1].loss

    def spoilt(output: Tensor, batch: Batch) -> Tensor:
        found = loss(output, batch)
        return found * torch.inf if world.rank == 1 and made.step_count == 1 else found

    made.tasks[1].loss = spoilt
    return {"skipped": made.fit(loader)["skipped"]} | made.state_dict(loader, everywhere=True)


MORE = """
[[stages]]
name = "on"
epochs = 1
tasks = ["side"]
optimizer = {optimizer = "sgd", schedule = "plateau", plateau_patience = 0, lr = 0.01}
keep_optimizer = true
[distributed]
strategy = "%s"
"""


def staged(world: World, folder: Path, stop_at: int, strategy: str) -> dict[str, Any]:
    """The stages of two_trainers, and one that keeps the moments and trains the encoder again."""
    return two_trainers.staged(world, folder, stop_at, MORE % strategy)


def every_model(world: World, names: list[str]) -> dict[str, dict[str, Any]]:
    """For each model of the library the number of modules that are gathered one by one, and the largest difference of a
    gradient, relative to the largest gradient: after two backward passes of one graph, divided and whole."""
    found = {}
    for name in names:
        tasks = models.tasks_of(name)
        whole, batch = models.build(name, tasks).eval(), models.batch_of()
        divided = models.build(name, tasks).eval()
        shard(divided, world, partial(divided, batch), smallest=200)
        for model in (whole, divided):
            loss = models.total_loss(model, tasks, batch)
            loss.backward(retain_graph=True)
            loss.backward()
        wanted = {key: value.grad for key, value in whole.named_parameters() if value.grad is not None}
        own: dict[str, Any] = dict(divided.named_parameters())
        off = max(float((own[key].grad.full_tensor() - value).abs().max()) for key, value in wanted.items())
        units = sum(isinstance(module, FSDPModule) for module in divided.modules())
        found[name] = {"units": units, "off": off / max(float(value.abs().max()) for value in wanted.values())}
    return found


def traffic(world: World, strategy: str, balancer: str, **options) -> dict[int, int]:
    """Size of the group -> numbers that this rank sends in a step."""
    return dict(communication.count_step(world, strategy, balancer, tasks=3, width=64, **options))


def run(rank: int, ranks: int, folder: str, cases: dict[str, tuple]) -> None:
    """Each case is a function's name, its arguments and its options; results go to a file per rank."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    address = f"file://{folder}/rendezvous-{ranks}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=ranks)
    try:
        found = {}
        for case, (name, arguments, options) in cases.items():
            world = World(rank, ranks)  # a new one, because a stop may still be under way in the last one
            found[case] = globals()[name](world, *arguments, **options)
        torch.save(found, f"{folder}/{ranks}-{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def on_ranks(ranks: int, folder: Path, cases: dict[str, tuple]) -> list[dict[str, Any]]:
    """What each rank found."""
    spawn(run, args=(ranks, str(folder), cases), nprocs=ranks)
    return [torch.load(folder / f"{ranks}-{rank}.pt") for rank in range(ranks)]
