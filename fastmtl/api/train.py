"""What `fastmtl train` does, on one process or on every rank: build, train or continue, evaluate."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .. import data
from ..builders import components, stains
from ..config import Recipe
from ..distributed import World
from ..evaluation.analyse import analyse
from ..evaluation.per_image import ImageTable
from ..evaluation.tta import Views
from ..protocols import Batch, Task
from ..training import checkpoint
from ..training.eval_loop import evaluate as score
from ..training.progress import ProgressLine
from ..training.run_dir import RunFolder, read_lines
from ..training.stages import Stages
from ..training.trainer import Interrupted
from ..utils.metric_directions import directions_of
from ..utils.words import counted
from . import notices
from .job import SPLIT_FILE, Job, prepare, say


def run(
    recipe: Recipe, root: Path | None, out: Path, split_file: Path | None, *, resumed: bool, console: Console
) -> dict[str, Any]:
    """Train or continue, and evaluate; {} on all ranks but the first. See `commands.train`."""
    components.check_names(recipe)
    world = World.from_environment()
    console = console if world.rank == 0 else Console(quiet=True)
    device = components.device_of(recipe.training.device, world.local_rank)
    with world.initialize(device):
        job = prepare(recipe, root, world.broadcast(out), split_file, device, world, resumed=resumed, console=console)
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


def _train(job: Job, loader: data.TileLoader, validation: data.TileLoader, *, resumed: bool) -> None:
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
            job.stain.save(job.out / stains.FILE)
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


def _judge(job: Job, validation: data.TileLoader) -> dict[str, Any]:
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
    say(odd, job.console)
    odd += notices.of_epochs(tasks, found, run.records())
    if damaged := sum(len(read_lines(path)[0]) for path in job.out.glob("quarantine*.jsonl")):
        odd.append(f"{counted(damaged, 'damaged tile')} set aside in training: see quarantine.jsonl")
    result["notices"] = [*job.notices, *odd]
    run.write_summary(result)
    table.write(job.out, {tile.id: tile.image for tile in splits.validation.tiles})
    analyse(job.out, recipe, model, tasks, splits.validation, device=job.device, stain=job.stain)
    return result


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
