"""What each of two gloo ranks runs for tests/training/test_trainer_ranks.py, and what one process runs beside it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmtl import balance
from fastmtl.builders import components
from fastmtl.config import TrainingConfig, load_recipe
from fastmtl.distributed import World
from fastmtl.protocols import Batch
from fastmtl.tasks import create_task
from fastmtl.training.errors import Interrupted, NonFiniteError
from fastmtl.training.sharding import divide, gathered
from fastmtl.training.stages import Stages
from fastmtl.training.trainer import Trainer
from fastmtl.training.weight_averaging import WeightAverage

CLASSES = ("left", "middle", "right")
BATCHES, BATCH = 4, 6  # of all ranks together


class Network(nn.Module):
    """A shared convolution, a map and a vector; `norm` is all that knows of other samples."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.Tanh()
        )
        self.mask, self.side = nn.Conv2d(8, 1, 1), nn.Linear(8, len(CLASSES))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z = self.encoder(batch.images)
        return {"mask": self.mask(z), "side": self.side(z.mean((2, 3)))}

    def shared_parameters(self):
        return self.encoder.parameters()


class PartLoader:
    """Random batches, a pure function of epoch and number; a rank has every other sample. Some labels are missing, in
    the third batch all that rank 1 has of the task "side"."""

    def __init__(self, world: World, seed: int = 0, side: int = 8) -> None:
        self.world, self.seed, self.side = world, seed, side
        self.epoch = self.batch = 0
        self.spoil = lambda batch, epoch, number: batch

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self):
        while self.batch < BATCHES:
            source = torch.Generator().manual_seed(1000 * self.seed + 10 * self.epoch + self.batch)
            side = torch.randint(0, 3, (BATCH,), generator=source)
            images = torch.randn(BATCH, 3, self.side, self.side, generator=source)
            mask = (images.mean(1, keepdim=True) + side[:, None, None, None] > 1).byte()
            has_label = torch.rand(BATCH, 2, generator=source) < 0.7
            has_label[0] = True
            if self.batch == 2:
                has_label[1::2, 1] = False
            own = slice(self.world.rank, None, self.world.size)
            made = Batch(images[own], {"mask": mask[own], "side": side[own]}, has_label[own])
            number, self.batch = self.batch, self.batch + 1
            yield self.spoil(made, self.epoch, number)
        self.epoch, self.batch = self.epoch + 1, 0

    def state_dict(self):
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state):
        self.epoch, self.batch = state["epoch"], state["batch"]


def trainer(world: World, balancer="pcgrad", *, fused=False, folder=None, norm=False, **config) -> Trainer:
    tasks = [
        create_task("binary_segmentation", "mask", 0),
        create_task("classification", "side", 1, class_names=CLASSES),
    ]
    model, made = Network(norm), balance.create_balancer(balancer)
    optimizer = torch.optim.SGD([*model.parameters(), *made.parameters()], lr=0.3, momentum=0.9, fused=True)
    settings = TrainingConfig(**{"precision": "float32", "epochs": 2, "log_every": 2} | config)
    update = balance.FusedStep(optimizer, clip_norm=settings.clip_norm) if fused else None
    folder = folder if world.rank == 0 else None
    return Trainer(model, tasks, made, optimizer, settings, update=update, folder=folder, world=world)


def trained(world: World, *arguments, **options) -> dict[str, Any]:
    """Two epochs and what is left of them."""
    made = trainer(world, *arguments, **options)
    records = []
    made.observers.append(Records(records))
    made.fit(PartLoader(world), PartLoader(world, seed=7))
    return {"weights": made.model.state_dict(), "records": records}


class Uneven(PartLoader):
    """Rank 1 has a batch less."""

    def __len__(self) -> int:
        return BATCHES - self.world.rank

    def __iter__(self):
        for batch in super().__iter__():
            if self.batch <= len(self):
                yield batch


def cut_in_validation(world: World, folder: Path) -> dict[str, object]:
    """Rank 1 is asked to stop in its first batch of the first validation; both leave it, and repeat it."""

    def run(made: Trainer, train: PartLoader, stop: bool) -> str:
        validation = Uneven(world, seed=7)

        def spoil(batch: Batch, epoch: int, number: int) -> Batch:
            made.stop_requested |= stop and world.rank == 1
            return batch

        validation.spoil = spoil
        try:
            made.fit(train, validation)
        except Interrupted as error:
            return str(error)
        return "nothing was raised"

    whole, records = trainer(world), []
    whole.observers.append(Records(records))
    run(whole, PartLoader(world), stop=False)
    message = run(trainer(world, folder=folder), PartLoader(world), stop=True)
    world.broadcast(None)  # rank 0 has written
    world = World(world.rank, world.size)  # as a new process has
    again, fresh, repeated = trainer(world), PartLoader(world), []
    again.observers.append(Records(repeated))
    again.resume(folder / "last", fresh)
    pending = again.pending is not None
    run(again, fresh, stop=False)
    epochs = [[one for one in some if "epoch" in one] for some in (records, repeated)]
    weights = [one.model.state_dict() for one in (whole, again)]
    return {"message": message, "pending": pending, "weights": weights, "epochs": epochs}


class Records:
    """The losses of every log step, and the records of every epoch."""

    def __init__(self, records: list) -> None:
        self._records = records

    def on_step(self, step, epoch, batch, num_batches, record) -> None:
        self._records.append(record["loss"])

    def on_epoch(self, record) -> None:
        keep = ("epoch", "step", "loss", "validation")
        self._records.append({name: record[name] for name in keep})


RUNS = {
    "pcgrad": ("pcgrad", {}),
    "pcgrad fused": ("pcgrad", {"fused": True}),
    "db_mtl": ("db_mtl", {}),
    "famo": ("famo", {}),
    "uncertainty": ("uncertainty", {}),
    "linear fused": ("linear", {"fused": True}),
    "norm": ("pcgrad", {"norm": True}),
}


def spoilt(world: World, how: str, fused: bool) -> dict[str, object]:
    """One bad loss on rank 1 alone."""
    made, loader = trainer(world, fused=fused), PartLoader(world)
    losses = made.tasks[1].loss
    bad = {"nan": lambda loss: loss * float("nan"), "inf": lambda loss: loss + float("inf")}[
        how
    ]  # inf: finite gradient

    def loss(output, batch):
        return bad(losses(output, batch)) if world.rank == 1 and made.step_count == 1 else losses(output, batch)

    made.tasks[1].loss = loss
    try:
        made.fit(loader)
        message = "nothing was raised"
    except NonFiniteError as error:
        message = str(error)
    return {"message": message, "weights": made.model.state_dict()}


def gone_on(world: World, folder: Path, policy: str) -> dict[str, object]:
    """A NaN image on rank 1 alone, before normalisation layers; both ranks skip the step or go back."""
    options = {"on_nonfinite": policy, "max_skipped": 0.5}
    made, loader = trainer(world, "pcgrad", folder=folder / "checkpoints", norm=True, **options), PartLoader(world)
    made.average = WeightAverage(made.model, "ema", decay=0.5)

    def spoil(batch, epoch, number):
        if (world.rank, epoch, number) != (1, 1, 1):
            return batch
        return replace(batch, images=batch.images * float("nan"))

    loader.spoil = spoil
    record = made.fit(loader, PartLoader(world, seed=7))
    state = made.average.state_dict()
    return {"record": record, "weights": state, "restores": made.skipped.restores, "step": made.step_count}


def stopped(world: World, folder: Path, balancer: str) -> dict[str, object]:
    """Rank 1 is asked to stop; all do, and go on as if nothing had been."""
    whole = trained(world, balancer)
    first, loader = trainer(world, balancer, folder=folder), PartLoader(world)
    step = first.step

    def counted(batch):
        first.stop_requested = world.rank == 1 and first.step_count == 2
        return step(batch)

    first.step = counted
    try:
        first.fit(loader)
        message = "nothing was raised"
    except Interrupted as error:
        message = str(error)
    world.broadcast(None)  # rank 0 has written
    second, fresh = trainer(world, balancer), PartLoader(world)
    torch.manual_seed(99)
    second.resume(folder / "last", fresh)
    record = second.fit(fresh)
    return {
        "message": message,
        "whole": whole["weights"],
        "ours": second.model.state_dict(),
        "losses": [record["loss"], next(r for r in whole["records"][::-1] if "epoch" in r)["loss"]],
    }


STAGES = """
[model]
name = "joint_unet"
preset = "tiny"
[tasks.mask]
kind = "binary_segmentation"
[tasks.side]
kind = "classification"
[balancer]
name = "pcgrad"
[data]
size = 32
[training]
precision = "float32"
average = "ema"
average_decay = 0.9
[[stages]]
name = "both"
epochs = 1
[[stages]]
name = "frozen"
epochs = 2
tasks = ["side"]
freeze = ["encoder"]
start = "best"
optimizer = {optimizer = "sgd", schedule = "plateau", plateau_patience = 0, find_lr = true}
"""


def staged(world: World, folder: Path, stop_at: int, more: str = "") -> dict[str, object]:
    """Stages on both ranks, stopped at a step and gone on with; `stop_at` 0 leaves them alone. `more` of the recipe may
    divide the model."""
    path = folder.with_suffix(".toml")
    if world.rank == 0:
        folder.parent.mkdir(exist_ok=True)
        path.write_text(STAGES + more)
    world.broadcast(None)
    recipe = load_recipe(path)

    def begun() -> tuple[Stages, PartLoader]:
        tasks = components.build_tasks(recipe, CLASSES)
        model = components.build_model(recipe, tasks, torch.device("cpu"))
        divide(recipe, model, world, smallest=500)
        return Stages(recipe, model, tasks, device=torch.device("cpu"), folder=folder, world=world), PartLoader(
            world, side=32
        )

    stages, loader = begun()

    def spoil(batch, epoch, number):
        if stop_at and BATCHES * epoch + number + 1 == stop_at:
            stages.stop()
        return batch

    loader.spoil = spoil
    stages.begin(loader)
    message = ""
    try:
        stages.fit(loader, PartLoader(world, seed=7, side=32))
    except Interrupted as error:
        message = str(error)
        world.broadcast(None)  # rank 0 has written
        world = World(world.rank, world.size)  # as a new process has
        stages, loader = begun()
        stages.resume(loader)
        stages.fit(loader, PartLoader(world, seed=7, side=32))
    end = stages.trainer
    progress = [end.stage, end.first_epoch, end.epoch, end.step_count, end.best_score]
    weights = gathered(dict(stages.model.state_dict()), keep=True)
    return {"message": message, "weights": weights, "progress": progress}


def alone_after(folder: Path) -> dict[str, Any]:
    """One process goes on with what two began."""
    alone = World()
    made, loader = trainer(alone), PartLoader(alone)
    made.resume(folder / "last", loader)
    record = made.fit(loader)
    return {"notes": made.notes, "weights": made.model.state_dict(), "loss": record["loss"]}


def main(rank: int, rendezvous: str, folder: str) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    world = World(rank, 2)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    try:
        found = {name: trained(world, balancer, **options) for name, (balancer, options) in RUNS.items()}
        for how in ("nan", "inf"):
            for fused in (False, True):
                found[f"{how} {fused}"] = spoilt(world, how, fused)
        for policy in ("skip", "restore"):
            found[policy] = gone_on(world, Path(folder) / policy, policy)
        for balancer in ("pcgrad", "db_mtl"):
            found[f"stopped {balancer}"] = stopped(world, Path(folder) / balancer, balancer)
        found["cut in validation"] = cut_in_validation(world, Path(folder) / "validation")
        for stop_at in (0, 7):
            found[f"staged {stop_at}"] = staged(world, Path(folder) / f"staged{stop_at}", stop_at)
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        world.close()
