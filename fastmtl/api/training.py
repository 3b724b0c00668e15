"""Train a recipe into a run folder, or continue an interrupted run; in one process or on every rank."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .. import data
from ..builders import components, datasets, pretrained, stains
from ..config import Recipe, list_recipes
from ..distributed import World
from ..training.progress import ProgressLine, plain
from ..training.run_dir import RunError, RunFolder
from ..training.stages import Stages
from ..training.trainer import Interrupted
from . import notices, rank_facts, scoring
from .job import SPLIT_FILE, Job, assemble, say
from .runs import report


def train(
    recipe: Recipe, root: Path | None, out: Path, *, split_file: Path | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Train `recipe` on the tiles under `root`, write the run folder `out`, and return the summary.

    Under `torchrun` all ranks train one model; rank 0 writes, prints and returns the summary, the others return {}.

    Args:
        recipe: the recipe; its names are checked before any data is read.
        root: data folder; None generates the recipe's synthetic data set next to `out`.
        out: folder to create.
        split_file: JSON file with "validation_patients".
        console: where progress is printed; None prints nothing.

    Raises:
        RunError: `out` already contains a run.
        ConfigError, ValueError: the recipe, the data or the split cannot be used, or a paper's own recipe is given data
            in another format than the paper's.
        NonFiniteError: the training diverged.
        Interrupted: the training was stopped and can be resumed.
    """
    if (out / "config.toml").exists():
        raise RunError(f"{out} already contains a run; choose another --out, or continue it with --resume.")
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; --out must be a folder to create.")
    if root is not None and recipe.paper.key and recipe.name in list_recipes():
        datasets.check_not_anothers(root, recipe.paper.formats, recipe.name)
    with _assembled(recipe, root, out, split_file, console, resumed=False) as (job, stages, batches, validation):
        stages.begin(batches)
        stages.fit(batches, validation)
    return _score_and_report(job)


def resume(out: Path, *, console: Console | None = None) -> dict[str, Any]:
    """Continue the run in `out` from its last checkpoint, with its own recipe, data and split; returns the summary.

    On another number of ranks, each takes its part of the run's batches.

    Raises:
        OtherRanks: the images of a batch do not divide by the number of ranks.
    """
    run = RunFolder(out)
    recipe, facts = run.recipe(), run.extra()
    split_file = Path(facts["split_file"]) if facts["split_file"] else None
    root = Path(facts["data"])
    with _assembled(recipe, root, out, split_file, console, resumed=True) as (job, stages, batches, validation):
        stages.fit(batches, validation)
    return _score_and_report(job)


@contextmanager
def _assembled(
    recipe: Recipe, root: Path | None, out: Path, split_file: Path | None, console: Console | None, *, resumed: bool
) -> Iterator[tuple[Job, Stages, data.TileLoader, data.TileLoader]]:
    """The job, its stages, and this rank's training and watching batches. Inside, the ranks are connected and Ctrl-C
    saves a checkpoint and stops.

    Raises:
        ConfigError: the network cannot be trained in one of the stages; no run folder has been created.
        Interrupted: the training was stopped and can be resumed.
    """
    components.check_names(recipe)
    world = World.from_environment()
    console = plain(console) if console is not None and world.rank == 0 else Console(quiet=True)
    device = components.device_of(recipe.training.device, world.local_rank)
    with world.initialize(device, recipe.training.rank_timeout):
        if world.size > 1:
            world.require_equal(rank_facts.of_code(recipe))
        job = assemble(recipe, root, world.broadcast(out), split_file, device, world, resumed=resumed, console=console)
        run, splits = RunFolder(job.out), job.splits
        progress = ProgressLine(recipe.training.epochs, console, "inner share" if splits.inner.tiles else "held out")
        observers = [run, progress, notices.ScoreWatch(job.tasks, console, splits.watching_name)]
        with job.training_batches() as batches, job.read(splits.watching, world) as validation:
            stages = Stages(
                recipe,
                job.model,
                job.tasks,
                device=device,
                folder=run.checkpoints,
                observers=observers,
                world=world,
                console=console,
            )
            stages.check()
            if not resumed:
                pretrained.check_frozen(recipe, job.model)
            if world.rank:
                torch.manual_seed(
                    recipe.training.seed + world.rank
                )  # otherwise dropout would drop the same elements on all ranks
            _open_run(job, run, stages, batches, resumed=resumed)
            try:
                with _stop_on_signal(stages):
                    yield job, stages, batches, validation
            except Interrupted as stopped:
                raise Interrupted(f"{stopped}; continue with: fastmtl train --resume --out {job.out}") from None
            finally:
                progress.close()
                run.close()
                if found := run.write_quarantine(batches.quarantine, world.rank):
                    count = len(batches.quarantine)
                    console.print(f"note: {count} damaged tiles were set aside in training: {found}")


def _open_run(job: Job, run: RunFolder, stages: Stages, batches: data.TileLoader, *, resumed: bool) -> None:
    """Create the run folder, or load its last checkpoint and drop the records after it."""
    first = job.world.rank == 0
    if resumed:
        trainer = stages.resume(batches)
        if first:
            run.trim(trainer.epoch, trainer.step_count)
        where = "already finished" if stages.finished else f"resumed at epoch {trainer.epoch + 1}"
        job.console.print(f"{where}, step {trainer.step_count}")
        say(trainer.notes, job.console)
    elif first:
        run.create(job.recipe, job.facts)
        data.save_split(job.splits.split, job.out / SPLIT_FILE)
        if job.stain is not None:
            job.stain.save(job.out / stains.FILE)
    ranks = f", ranks: {job.world.size}" * (job.world.size > 1)
    job.console.print(f"device: {job.device}, precision: {job.facts['precision']}{ranks}")
    fused_step = job.recipe.training.fused_step is not False
    for note in notices.of_fallbacks(job.device, fused_step=fused_step, stains=job.stain is not None):
        job.console.print(f"note: {note}")


def _score_and_report(job: Job) -> dict[str, Any]:
    """Write summary.json and report.html and return the summary; {} on all ranks except the first."""
    if job.world.rank:
        return {}
    summary = scoring.score_training(job)
    for problem in report([job.out]):
        job.console.print(f"report: {problem}")
    return summary


@contextmanager
def _stop_on_signal(stages: Stages) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM saves a checkpoint after the current step; a second Ctrl-C stops immediately."""

    def ask(number: int, _frame: object) -> None:
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
