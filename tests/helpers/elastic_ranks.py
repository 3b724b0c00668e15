"""A training that stops and goes on on other numbers of gloo ranks, for tests/training/test_elastic.py."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from fastmtl import balance
from fastmtl.config import OptimizerConfig, TrainingConfig
from fastmtl.data import Augmentation, TileLoader, read_tile_folder
from fastmtl.distributed import World
from fastmtl.protocols import Batch
from fastmtl.tasks import create_task
from fastmtl.training.lr_schedule import Schedule
from fastmtl.training.trainer import Trainer
from fastmtl.training.weight_averaging import WeightAverage
from helpers.checkpoints import save_checkpoint
from helpers.tiles import write_folder

GLOBAL, EPOCHS = 12, 3
COUNTS = {"A": 9, "B": 20}  # 29 tiles: an epoch is 12 + 12 + 5
TARGETS = {"mask": "mask", "kind": "label"}


class Network(nn.Module):
    """float64, and each sample for itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh())
        self.mask, self.kind = nn.Conv2d(8, 1, 1), nn.Linear(8, 2)
        self.double()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z = self.encoder(batch.images.double())
        return {"mask": self.mask(z), "kind": self.kind(z.mean((2, 3)))}

    def shared_parameters(self):
        return self.encoder.parameters()


class Stopped(Exception):
    pass


class Until:
    """`loader`, up to so many steps from here."""

    def __init__(self, loader: TileLoader, steps: int) -> None:
        self.loader, self.left = loader, steps
        self.state_dict, self.load_state_dict = loader.state_dict, loader.load_state_dict

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            yield batch
            self.left -= 1
            if not self.left:
                raise Stopped


def _loader(world: World, tiles, size: int, **options) -> TileLoader:
    ranks = {"rank": world.rank, "world_size": world.size, "batch_size": size // world.size}
    return TileLoader(tiles, targets=TARGETS, size=16, seed=5, num_threads=1, **ranks, **options)


def make(world: World, folder: Path, balancer: str, size: int = GLOBAL) -> tuple[Trainer, TileLoader]:
    loader = _loader(world, read_tile_folder(folder).tiles, size, augmentation=Augmentation(), shuffle=True)
    tasks = [
        create_task("binary_segmentation", "mask", 0),
        create_task("classification", "kind", 1, class_names=("A", "B")),
    ]
    kind = tasks[1]  # its own loss is in float32
    kind.loss = lambda output, batch: kind.criterion(output, batch.targets["kind"], mask=kind.has_label(batch))
    model, made = Network(), balance.create_balancer(balancer)
    optimizer = torch.optim.AdamW([*model.parameters(), *made.parameters()], lr=0.01)
    config = TrainingConfig(precision="float32", epochs=EPOCHS, log_every=1)
    schedule = Schedule(optimizer, OptimizerConfig(), EPOCHS * len(loader))
    average = WeightAverage(model, "ema", decay=0.9)
    return Trainer(model, tasks, made, optimizer, config, scheduler=schedule, average=average, world=world), loader


def part(world: World, folder: Path, balancer: str, steps: int, state: Path | None, size: int = GLOBAL) -> dict:
    """`steps` steps (0: to the end) from the checkpoint `state`, or from the start; saved where it was."""
    trainer, loader = make(world, folder, balancer, size)
    losses: list[Any] = []
    trainer.observers.append(Recorder(losses))
    if state is not None and state.exists():
        trainer.resume(state, loader)
        world.broadcast(None)  # all have read it
    try:
        trainer.fit(Until(loader, steps) if steps else loader)
    except Stopped:
        saved = trainer.state_dict(loader)
        if world.rank == 0 and state is not None:
            shutil.rmtree(state, ignore_errors=True)  # a checkpoint is never written over
            save_checkpoint(state, saved)
    weights = trainer.average.module.state_dict()
    return {"losses": losses, "weights": weights, "notes": trainer.notes, "noise": torch.rand(1)}


def with_few_tiles(world: World, folder: Path) -> dict[str, Any]:
    """Two tiles to train on and one to validate on, in steps of three."""
    trainer, _ = make(world, folder, "pcgrad")
    first, *_, last = read_tile_folder(folder).tiles
    record = trainer.fit(_loader(world, [first, last], 3, shuffle=True), _loader(world, [first], 3))
    return {name: record[name] for name in ("step", "loss", "validation")}


class Recorder:
    """The losses of every step and every epoch."""

    def __init__(self, losses: list) -> None:
        self.losses = losses

    def on_step(self, step, epoch, batch, num_batches, record) -> None:
        self.losses.append({"step": step, "batch": (batch, num_batches)} | record["loss"])

    def on_epoch(self, record) -> None:
        self.losses.append({"epoch": record["epoch"], "step": record["step"]} | record["loss"])


def _rank(rank: int, ranks: int, folder: str, balancers: tuple[str, ...], steps: int) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    root = Path(folder)
    address = f"file://{root / f'rendezvous-{ranks}-{steps}'}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=ranks)
    world = World(rank, ranks)
    try:
        found: dict[str, Any] = {name: part(world, root / "tiles", name, steps, root / name) for name in balancers}
        if ranks == 3:
            found["few"] = with_few_tiles(world, root / "tiles")
        torch.save(found, root / f"{rank}.pt")
    finally:
        world.close()


def run(folder: Path, plan: list[tuple[int, int]], balancers: tuple[str, ...]) -> dict[str, dict]:
    """Each (ranks, steps) of `plan` in processes of its own; what all of them found, in order."""
    write_folder(folder / "tiles", COUNTS)
    whole: dict[str, dict] = {name: {"losses": [], "notes": []} for name in balancers}
    for ranks, steps in plan:
        if ranks == 1:
            found = {name: part(World(), folder / "tiles", name, steps, folder / name) for name in balancers}
        else:
            spawn(_rank, args=(ranks, str(folder), balancers, steps), nprocs=ranks)
            parts = [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]
            found = parts[0]
            for name in balancers:
                for other in parts[1:]:
                    assert other[name]["losses"] == found[name]["losses"]
                    seeded = bool(found[name]["notes"])  # anew, and on each rank otherwise
                    assert torch.equal(other[name]["noise"], found[name]["noise"]) is not seeded
            whole["few"] = found.get("few", {})
        for name in balancers:
            whole[name]["losses"] += found[name]["losses"]
            whole[name]["notes"].append(found[name]["notes"])
            whole[name]["weights"] = found[name]["weights"]
    return whole
