"""Train a recipe into a run folder, or continue an interrupted run; in one process or on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .. import data
from ..builders import components, datasets, pretrained, stains
from ..builders.ranks import check_ranks
from ..config import Recipe, list_recipes
from ..distributed import World
from ..training import sharding
from ..training.checkpoint_names import history
from ..training.disk_policy import DiskError, DiskPolicy, disk_reason
from ..training.errors import NonFiniteError
from ..training.file_lock import locked
from ..training.profiling import ProfiledLoader
from ..training.progress import ProgressLine, plain
from ..training.run_dir import RunError, RunFolder
from ..training.stages import Stages, ready_for_use
from ..utils.cures import cure_of
from ..utils.words import counted
from . import continuing, notices, rank_facts, scoring
from .job import Job, assemble, say
from .runs import report
from .stop_signals import StopSignals


def train(
    recipe: Recipe,
    root: Path | None,
    out: Path,
    *,
    split_file: Path | None = None,
    profile: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train `recipe` on the tiles under `root`, write the run folder `out`, and return the summary.

    If `out` contains this run already, it is continued from its newest checkpoint, or from the first step if there is
    none; a finished run returns its summary. Under `torchrun` all ranks train one model; rank 0 writes, prints and
    returns the summary, the others return {}.

    Args:
        recipe: the recipe; its names are checked before any data is read.
        root: data folder; None generates the recipe's synthetic data set next to `out`, or uses the run's own folder.
        out: folder to create or to continue.
        split_file: JSON file with "validation_patients".
        profile: write a torch.profiler trace of a few steps to `out`/profile.
        console: where progress is printed; None prints nothing.

    Raises:
        RunError: `out` contains a run of another recipe, split or data, or another process trains in it.
        ConfigError, ValueError: the recipe, the data or the split cannot be used, or a paper's own recipe is given data
            in another format than the paper's.
        NonFiniteError: the training diverged.
        Interrupted: the training was stopped; the same call continues it.
    """
    with StopSignals(out) as signals:
        start = continuing.by_recipe(out, recipe, root, split_file)
        if start.summary is None and root is not None and recipe.paper.key and recipe.name in list_recipes():
            datasets.check_not_anothers(root, recipe.paper.formats, recipe.name)
        return _run(start, out, console, signals, profile=profile)


def resume(
    out: Path,
    *,
    root: Path | None = None,
    changes: Mapping[str, Any] | None = None,
    profile: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Continue the run in `out` from its newest checkpoint, or from the first step if there is none; returns the
    summary. On another number of ranks, each takes its part of the run's batches.

    Args:
        out: the run folder; its recipe, data and split are used.
        root: where the data are now, if they were moved; the same tiles.
        changes: values of the recipe to change from here on, nested tables of the keys in `resuming.MAY_CHANGE`.
        profile: as for `train`.
        console: where progress is printed; None prints nothing.

    Raises:
        RunError: `out` is not a run, another process trains in it, or the data are not the run's.
        ConfigError: a value that cannot change.
        OtherRanks: the number of images in a step is not divisible by the number of ranks.
        Interrupted: the training was stopped; the same call continues it.
    """
    with StopSignals(out) as signals:
        return _run(continuing.by_folder(out, root, changes or {}), out, console, signals, profile=profile)


def _run(
    start: continuing.Start, out: Path, console: Console | None, signals: StopSignals, *, profile: bool
) -> dict[str, Any]:
    """Train, score and report, unless the run is finished; the summary on rank 0, {} on the others."""
    world = World.from_environment()
    console = plain(console) if console is not None and world.rank == 0 else Console(quiet=True)
    if start.summary is not None:
        unchanged = (
            f"; nothing is left to train, and {', '.join(start.ignored)} did not change" if start.ignored else ""
        )
        console.print(f"already finished: {out}{unchanged}{'; no profile: no step is left' if profile else ''}")
        return {} if world.rank else start.summary
    with ExitStack() as locks:  # until the report is written
        with _assembled(start, out, world, console, signals, locks) as (job, stages, batches, validation):
            _fit(job, stages, batches, validation, profile)
        return _score_and_report(job)


def _fit(job: Job, stages: Stages, batches: data.TileLoader, validation: data.TileLoader, with_profile: bool) -> None:
    """Train; the first steps under the profiler, on rank 0 only, if `with_profile`."""
    try:
        if with_profile and job.world.rank == 0:
            with ProfiledLoader(batches, job.out / "profile", job.console.print) as profiled:
                stages.fit(profiled, validation)
        else:
            stages.fit(batches, validation)
    except NonFiniteError as error:
        or_skip = ", or with --on-nonfinite skip" if job.recipe.training.on_nonfinite == "raise" else ""
        raise NonFiniteError(
            f"{error} The last checkpoint is from before; continue from it with: fastmtl train --resume --out "
            f"{job.out} --lr RATE{or_skip}."
        ) from None


@contextmanager
def _assembled(
    start: continuing.Start, out: Path, world: World, console: Console, signals: StopSignals, locks: ExitStack
) -> Iterator[tuple[Job, Stages, data.TileLoader, data.TileLoader]]:
    """The job, its stages, and this rank's training and watching batches. Inside, the ranks are connected, the run
    folder is locked (until `locks` is closed), and a stop signal saves a checkpoint and stops.

    Raises:
        ConfigError: the network cannot be trained in one of the stages; no run folder has been created.
        Interrupted: the training was stopped and can be resumed.
    """
    recipe = start.recipe
    components.check_names(recipe)
    device = components.device_of(recipe.training.device, world.local_rank)
    check_ranks(recipe, device, world)
    with world.initialize(device, recipe.training.rank_timeout):
        if world.size > 1:
            world.require_equal(rank_facts.of_code(recipe))
        if start.resumed and world.rank == 0:
            _lock(out, locks)
        # All ranks follow rank 0, which has the lock: on a shared file system others may see an older state.
        out, start, trained = world.broadcast((out, start, bool(history(RunFolder(out).checkpoints))))
        signals.out = out
        job = assemble(start, out, device, world, trained=trained, console=console)
        disk = DiskPolicy(recipe.training.on_disk_error, console.print)
        run, splits = RunFolder(job.out, disk), job.splits
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
                disk=disk,
            )
            stages.check()
            if not trained:
                pretrained.check_frozen(recipe, job.model)
            sharding.divide(recipe, job.model, world)
            if world.rank:  # otherwise dropout would drop the same elements on all ranks
                torch.manual_seed(recipe.training.seed + world.rank)
            elif not start.resumed:
                _create(job, run, locks)
            if not world.rank:
                job.checked.save()
            try:
                with signals.asking(stages.stop):
                    _begin(job, run, stages, batches, start, trained=trained)
                    yield job, stages, batches, validation
                job.notices.extend(disk.notices())
            finally:
                progress.close()
                _write_quarantine(run, batches, world.rank, console)


def _lock(out: Path, locks: ExitStack) -> None:
    locks.enter_context(locked(out, f"another process trains in {out}; wait for its end, or choose another --out."))
    RunFolder(out).refuse_links()


def _create(job: Job, run: RunFolder, locks: ExitStack) -> None:
    """Create and lock the run folder."""
    job.out.mkdir(parents=True, exist_ok=True)
    _lock(job.out, locks)
    if run.exists:
        raise RunError(f"another process began a run in {job.out}; the same command continues it.")
    data.save_split(job.splits.split, run.split_file)
    if job.stain is not None:
        job.stain.save(job.out / stains.FILE)
    run.create(job.recipe, job.facts)


def _begin(
    job: Job, run: RunFolder, stages: Stages, batches: data.TileLoader, start: continuing.Start, *, trained: bool
) -> None:
    """Prepare the first stage, or load the newest checkpoint and drop the records after it."""
    if trained:
        trainer = stages.resume(batches, rebased=start.rebased)
        where = "training already finished" if stages.finished else f"resumed at epoch {trainer.epoch + 1}"
        if trainer.pending is not None:
            where = f"resumed at the validation of epoch {trainer.epoch}"
        job.console.print(f"{where}, step {trainer.step_count}")
        say(trainer.notes, job.console)
        if stages.replaced_best and stages.finished:  # otherwise a later epoch may be the best one
            job.notices.append(f"{stages.replaced_best} The scores are of that one.")
    if start.resumed and job.world.rank == 0:
        epochs, steps = (0, 0) if stages.trainer is None else (stages.trainer.num_recorded, stages.trainer.step_count)
        run.reopen(job.recipe, job.facts["data"], epochs, steps, ranks=job.world.size, changes=start.changes)
        for key, (before, now) in start.changes.items():
            job.console.print(f"changed: {key} was {before!r}, is now {now!r}")
    ranks = f", ranks: {job.world.size} ({job.recipe.distributed.strategy})" * (job.world.size > 1)
    job.console.print(f"device: {job.device}, precision: {job.facts['precision']}{ranks}")
    fused_step = job.recipe.training.fused_step is not False
    for note in notices.of_fallbacks(job.device, fused_step=fused_step, stains=job.stain is not None):
        job.console.print(f"note: {note}")
    if not trained:
        stages.begin(batches)


def _write_quarantine(run: RunFolder, batches: data.TileLoader, rank: int, console: Console) -> None:
    """Also after an error, which matters more than a failure to write this."""
    damaged = f"{counted(len(batches.quarantine), 'damaged tile')} set aside in training"
    try:
        if found := run.write_quarantine(batches.quarantine, rank):
            console.print(f"note: {damaged}: {found}")
    except OSError as error:
        console.print(f"note: {damaged}; the list of them cannot be written ({error})")


def _score_and_report(job: Job) -> dict[str, Any]:
    """Write summary.json and report.html and return the summary; {} on all ranks except the first.

    Raises:
        DiskError: a file cannot be read or written.
    """
    if job.world.rank:
        return {}
    if sharding.is_sharded(job.model):  # its other parts are on ranks that have ended; the checkpoint has the whole
        model = components.build_model(job.recipe, job.tasks, job.device, trained=True)
        ready_for_use(job.recipe, model)
        job = replace(job, model=model)
    try:
        summary = scoring.score_training(job)
        for problem in report([job.out]):
            job.console.print(f"report: {problem}")
    except Exception as error:
        if not (reason := disk_reason(error)):
            raise
        path = getattr(error, "filename", None) or job.out
        raise DiskError(
            f"{path} cannot be read or written ({reason}). The training is complete: {cure_of(error)}, and write the "
            f"scores and the report with fastmtl train --resume --out {job.out}."
        ) from error
    return summary
