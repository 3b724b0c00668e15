"""What `fastmtl train` does, on one process or on every rank: build, train or continue, evaluate."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from . import build, checkpoint, data, datasets, notices, staining
from .analyses import analyse
from .config import ConfigError, Recipe
from .directions import directions_of
from .evaluation import ImageTable
from .inference import autocast_dtype
from .inference import evaluate as score
from .progress import ProgressLine
from .protocols import Batch, Task
from .run_folder import RunFolder, read_lines
from .stages import Stages
from .trainer import Interrupted
from .tta import Views, check_views
from .words import counted
from .world import World

SPLIT_FILE = "split.json"
"""In a run's folder: the patients and tiles of each side."""


@dataclass(frozen=True)
class _Job:
    """A training whose recipe fits its data: what its steps need, on one rank."""

    recipe: Recipe
    out: Path
    facts: dict[str, Any]
    splits: datasets.Splits
    tasks: Sequence[Task]
    model: nn.Module
    stain: data.StainNormalizer | None
    device: torch.device
    dtype: torch.dtype | None
    world: World
    console: Console
    notices: list[str]

    def read(
        self, part: data.Dataset, world: World | None = None, *, train: bool = False, drop_single: bool = False
    ) -> data.TileLoader:
        """Batches of it; with `world` this rank's share of them."""
        return build.build_loader(
            self.recipe,
            part,
            self.tasks,
            train=train,
            device=self.device,
            world=world,
            stain=self.stain,
            drop_single=drop_single,
        )

    def training_batches(self) -> data.TileLoader:
        """This rank's, without a last batch of one image where the network cannot be trained on that.

        Raises:
            ConfigError: there is no other batch.
        """
        loader = self.read(self.splits.train, self.world, train=True)
        name, one = self.recipe.model["name"], "a batch of one image leaves BatchNorm of {} one value a channel"
        if not loader.ends_with_one or build.takes_one_image(self.recipe, self.model, len(self.tasks), self.device):
            return loader
        loader.close()
        if self.recipe.data.batch_size == 1 or len(loader) == 1:
            found = "data.batch_size is 1" if self.recipe.data.batch_size == 1 else "there is one image to train on"
            raise ConfigError(f"recipe {self.recipe.name}: {found}, and {one.format(name)}; it takes two or more.")
        said = (
            f"{one.format(name)}, and each epoch would end with one: that image, another each epoch, is left out "
            f"(data.batch_size = {self.recipe.data.batch_size})"
        )
        _say([said], self.console)
        self.notices.append(said)
        return self.read(self.splits.train, self.world, train=True, drop_single=True)


def run(
    recipe: Recipe, root: Path | None, out: Path, split_file: Path | None, *, resumed: bool, console: Console
) -> dict[str, Any]:
    """Train or continue, and evaluate; {} on all ranks but the first. See `commands.train`."""
    build.check_names(recipe)
    world = World.from_environment()
    console = console if world.rank == 0 else Console(quiet=True)
    device = build.device_of(recipe.training.device, world.local_rank)
    with world.together(device):
        job = _prepare(recipe, root, world.tell(out), split_file, device, world, resumed=resumed, console=console)
        with (
            job.training_batches() as loader,
            job.read(job.splits.validation, world) as validation,
        ):
            _train(job, loader, validation, resumed=resumed)
            if world.size == 1:
                return _judge(job, validation)
        world.close()  # each rank had a part of the images; rank 0 looks at all of them, alone
        if world.rank:
            return {}
        with job.read(job.splits.validation) as validation:
            return _judge(job, validation)


def _prepare(
    recipe: Recipe,
    root: Path | None,
    out: Path,
    split_file: Path | None,
    device: torch.device,
    world: World,
    *,
    resumed: bool,
    console: Console,
) -> _Job:
    """Data, stains, tasks and network, checked against each other; says what is trained on what."""
    stain = staining.normalizer_of(recipe, out if resumed else None)
    if root is None:
        root = world.tell(_generate(recipe, out.parent, console) if world.rank == 0 else Path())
    own = out / SPLIT_FILE
    if resumed and own.is_file():  # files beside the data, or another way of drawing, must not move patients
        split_file = own
    splits = datasets.read_splits(recipe, root, split_file)
    _describe(splits, root, console, by_tile=recipe.data.group_by == "tile")
    if stain is not None:
        for part in (splits.train, splits.validation, splits.test):  # a mosaic is made of the first alone
            staining.fit_slides(stain, part.tiles, recipe, world, console)
    tasks = build.build_tasks(recipe, splits.train.class_names, splits.train.classes)
    datasets.check_targets(tasks, splits.train)
    datasets.check_metadata(recipe, splits.train)
    parts = (splits.train, splits.validation, splits.test)
    odd = datasets.check_maps(tasks, parts, train=splits.train, say=console.print)
    for problem in odd:
        console.print(f"note: {problem}")
    splits = replace(splits, problems=[*splits.problems, *odd])
    model = build.build_model(recipe, tasks, device, trained=resumed)
    build.check_size(recipe, model)
    check_views(tasks, recipe.training.tta)
    dtype = autocast_dtype(recipe.training.precision, device)
    odd = _odd_targets(tasks, splits)
    _say(odd, console)
    odd = [*notices.of_problems(splits.problems, root), *odd]
    facts = _facts(root, split_file, splits) | {
        "precision": str(dtype or torch.float32).removeprefix("torch."),
        "device": str(device),
        "notices": odd,
    }
    return _Job(recipe, out, facts, splits, tasks, model, stain, device, dtype, world, console, odd)


def _describe(splits: datasets.Splits, root: Path, console: Console, *, by_tile: bool) -> None:
    for problem in splits.problems:
        console.print(f"note: {problem}")
    count = partial(_count, by_tile=by_tile)
    tested = f", {count(splits.test)} for the test" if splits.test.tiles else ""
    console.print(f"data: {root}; {count(splits.train)} to train, {count(splits.validation)} held out{tested}")
    console.print(f"split: {splits.origin}")
    for line in splits.summary:
        console.print(line)


def _odd_targets(tasks: Sequence[Task], splits: datasets.Splits) -> list[str]:
    sides = {"training": splits.train, "held-out": splits.validation, "test": splits.test}
    return [said for side, part in sides.items() for said in notices.of_targets(tasks, part, side)]


def _say(odd: Sequence[str], console: Console) -> None:
    for notice in odd:
        console.print(f"note: {notice}", markup=False)


def _train(job: _Job, loader: data.TileLoader, validation: data.TileLoader, *, resumed: bool) -> None:
    """Train to the end of the last stage; leaves the checkpoints and the run folder's records.

    Raises:
        ConfigError: a stage that the network cannot be trained in; there is no run folder yet.
        Interrupted: it was stopped, and can be resumed.
    """
    run, recipe, world, console = RunFolder(job.out), job.recipe, job.world, job.console
    progress = ProgressLine(recipe.training.epochs, console)
    stages = Stages(
        recipe,
        job.model,
        job.tasks,
        device=job.device,
        folder=run.checkpoints,
        observers=[run, progress, notices.ScoreWatch(job.tasks, console)],
        world=world,
        console=console,
    )
    stages.check()
    if world.rank:
        torch.manual_seed(recipe.training.seed + world.rank)  # or dropout would drop the same on all ranks
    if resumed:
        trainer = stages.resume(loader)
        if world.rank == 0:
            run.trim(trainer.epoch, trainer.step_count)
        where = "already finished" if stages.finished else f"resumed at epoch {trainer.epoch + 1}"
        console.print(f"{where}, step {trainer.step_count}")
    elif world.rank == 0:
        run.create(recipe, job.facts)
        data.save_split(job.splits.split, job.out / SPLIT_FILE)
        if job.stain is not None:
            job.stain.save(job.out / staining.FILE)
    ranks = f", ranks: {world.size}" * (world.size > 1)
    console.print(f"device: {job.device}, precision: {job.facts['precision']}{ranks}")
    try:
        with _stop_politely(stages):
            if not resumed:
                stages.begin(loader)
            stages.fit(loader, validation)
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}; continue with: fastmtl train --resume --out {job.out}") from None
    finally:
        progress.close()
        run.close()
        if found := run.write_quarantine(loader.quarantine, world.rank):
            console.print(f"note: {len(loader.quarantine)} damaged tiles were set aside in training: {found}")
        loader.close()  # its threads and buffers are not needed while the run is judged


def _judge(job: _Job, validation: data.TileLoader) -> dict[str, Any]:
    """Score the weights that the recipe wants judged on `validation`, which has all held-out images, and leave
    summary.json, evaluation.jsonl and the analyses."""
    run, recipe, model, tasks, splits = RunFolder(job.out), job.recipe, job.model, job.tasks, job.splits
    which = recipe.training.checkpoint
    checkpoint.load_model(run.checkpoints / which, model, job.device)
    judged = Views(model, tasks, recipe.training.tta) if recipe.training.tta else model
    table, maps = ImageTable(tasks), notices.MapsSeen(tasks)

    def look(batch: Batch, outputs: Mapping[str, Any]) -> None:
        table(batch, outputs)
        maps(batch, outputs)

    found = score(judged, tasks, validation, device=job.device, dtype=job.dtype, visit=look)
    validation.close()
    result = summary(recipe, tasks, which, found, splits.validation)
    odd = [*maps.notices("held-out"), *notices.of_scores(tasks, found, "held-out")]
    if splits.test.tiles:
        maps = notices.MapsSeen(tasks)
        with job.read(splits.test) as test:
            of_test = score(judged, tasks, test, device=job.device, dtype=job.dtype, visit=maps)
        result["test"] = summary(recipe, tasks, which, of_test, splits.test)
        odd += [*maps.notices("test"), *notices.of_scores(tasks, of_test, "test")]
    _say(odd, job.console)
    odd += notices.of_epochs(tasks, found, run.records())
    if damaged := sum(len(read_lines(path)[0]) for path in job.out.glob("quarantine*.jsonl")):
        odd.append(f"{counted(damaged, 'damaged tile')} set aside in training: see quarantine.jsonl")
    result["notices"] = [*job.notices, *odd]
    run.write_summary(result)
    table.write(job.out, {tile.id: tile.image for tile in splits.validation.tiles})
    analyse(job.out, recipe, model, tasks, splits.validation, device=job.device, stain=job.stain)
    return result


def _generate(recipe: Recipe, beside: Path, console: Console) -> Path:
    if not recipe.data.generator:
        raise ConfigError(f"recipe {recipe.name} needs data: add --data DIR.")
    is_slides = recipe.data.generator == "slides"
    folder = beside / ("generated-slides" if is_slides else f"{recipe.data.generator}-tiles")
    if not folder.exists():
        console.print(f"data: making synthetic {'slides' if is_slides else 'tiles'}, once")
    return data.generate_slides(folder) if is_slides else data.generate(folder)


def _facts(root: Path, split_file: Path | None, splits: datasets.Splits) -> dict[str, Any]:
    """What evaluating or resuming the run needs to know of its data."""
    return {
        "data": str(root.resolve()),
        "split_file": str(split_file.resolve()) if split_file else None,
        "split": splits.origin,
        "class_names": list(splits.train.class_names),
        "classes": {name: list(names) for name, names in splits.train.classes.items()},
        "training_patients": sorted({tile.group for tile in splits.train.tiles}),
        "validation_patients": sorted({tile.group for tile in splits.validation.tiles}),
        "test_patients": sorted({tile.group for tile in splits.test.tiles}),
        "training_images": len(splits.train),
        "validation_images": len(splits.validation),
    }


def summary(
    recipe: Recipe, tasks: Sequence[Task], which: str, found: dict[str, Any], folder: data.Dataset
) -> dict[str, Any]:
    """What summary.json and `fastmtl eval` say, but for the notices."""
    patients = len({tile.group for tile in folder.tiles})
    return {
        "tasks": found["tasks"],
        "loss": found["loss"],
        "score": found["score"],
        "num_images": found["num_images"],
        "num_patients": patients,
        "higher_is_better": directions_of(tasks),
        "recipe": recipe.name,
        "checkpoint": which,
    }


def _count(folder: data.Dataset, by_tile: bool) -> str:
    patients = "" if by_tile else f" of {len({tile.group for tile in folder.tiles})} patients"
    return f"{len(folder)} tiles{patients}"


@contextmanager
def _stop_politely(stages: Stages) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM saves a checkpoint after the running step; a second Ctrl-C stops at once."""

    def ask(number: int, _frame: Any) -> None:
        stages.stop()
        signal.signal(number, before[signal.Signals(number)])

    numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            signal.signal(number, ask)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
