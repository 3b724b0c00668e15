"""What each command of `fastmtl` does, without the parsing: usable from Python as it is."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich.console import Console
from torch import nn

from . import build, checkpoint, data, datasets
from .config import ConfigError, Recipe
from .evaluation import ImageTable
from .inference import autocast_dtype
from .inference import evaluate as score
from .predict import find_images, write_predictions
from .progress import ProgressLine
from .protocols import Task
from .report import read_run, render, render_comparison
from .run_folder import RunError, RunFolder
from .trainer import Interrupted, Trainer
from .world import World


def train(
    recipe: Recipe, root: Path | None, out: Path, *, split_file: Path | None = None, console: Console
) -> dict[str, Any]:
    """Train `recipe` on the tiles under `root` and leave a run folder at `out`; returns its summary.

    Under `torchrun` all ranks train one model; rank 0 writes, prints and returns the summary, the others {}.

    Args:
        recipe: what to train; its names are checked before any data is read.
        root: data folder; None makes the recipe's synthetic data set beside `out`.
        out: folder to create.
        split_file: JSON with the "validation_patients".
        console: where progress goes.

    Raises:
        RunError: `out` already holds a run.
        ConfigError, ValueError: the recipe, the data or the split cannot be used.
        NonFiniteError: the training diverged.
        Interrupted: it was stopped, and can be resumed.
    """
    if (out / "config.toml").exists():
        raise RunError(f"{out} already holds a run; choose another --out, or continue it with --resume.")
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; --out must be a folder to create.")
    return _run(recipe, root, out, split_file, resumed=False, console=console)


def resume(out: Path, *, console: Console) -> dict[str, Any]:
    """Continue the run in `out` from its last checkpoint, with its own recipe, data and split."""
    run = RunFolder(out)
    recipe, facts = run.recipe(), run.extra()
    split_file = Path(facts["split_file"]) if facts["split_file"] else None
    return _run(recipe, Path(facts["data"]), out, split_file, resumed=True, console=console)


def _run(
    recipe: Recipe, root: Path | None, out: Path, split_file: Path | None, *, resumed: bool, console: Console
) -> dict[str, Any]:
    build.check_names(recipe)
    world = World.from_environment()
    console = console if world.rank == 0 else Console(quiet=True)
    device = build.device_of(recipe.training.device, world.local_rank)
    with world.together(device):
        return _run_together(recipe, root, world.tell(out), split_file, device, world, resumed=resumed, console=console)


def _run_together(
    recipe: Recipe,
    root: Path | None,
    out: Path,
    split_file: Path | None,
    device: torch.device,
    world: World,
    *,
    resumed: bool,
    console: Console,
) -> dict[str, Any]:
    run, first = RunFolder(out), world.rank == 0
    if root is None:
        root = world.tell(_generate(recipe, out.parent, console) if first else Path())
    splits = datasets.read_splits(recipe, root, split_file)
    for problem in splits.problems:
        console.print(f"note: {problem}")
    if splits.num_patients == splits.num_tiles > 1:
        console.print("note: every tile is its own patient; if file names say more, set data.patient in the recipe")
    tested = f", {_count(splits.test)} for the test" if splits.test.tiles else ""
    console.print(f"data: {root}; {_count(splits.train)} to train, {_count(splits.validation)} held out{tested}")
    console.print(f"split: {splits.origin}")
    tasks = build.build_tasks(recipe, splits.train.class_names, splits.train.classes)
    datasets.check_targets(tasks, splits.train)
    model = build.build_model(recipe, tasks, device)
    balancer = build.build_balancer(recipe)
    optimizer = build.build_optimizer(recipe, model, balancer)
    loader = build.build_loader(recipe, splits.train, tasks, train=True, device=device, world=world)
    validation = build.build_loader(recipe, splits.validation, tasks, train=False, device=device, world=world)
    scheduler = build.build_scheduler(recipe, optimizer, recipe.training.epochs * len(loader))
    progress = ProgressLine(recipe.training.epochs, console)
    trainer = Trainer(
        model,
        tasks,
        balancer,
        optimizer,
        recipe.training,
        device=device,
        update=build.build_update(recipe, optimizer),
        scheduler=scheduler,
        folder=run.checkpoints if first else None,
        observers=[run, progress] if first else [],
        world=world,
    )
    precision = str(trainer.dtype or torch.float32).removeprefix("torch.")
    if world.rank:
        torch.manual_seed(recipe.training.seed + world.rank)  # or dropout would drop the same on all ranks
    if resumed:
        trainer.resume(run.checkpoints / "last", loader)
        if first:
            run.trim(trainer.epoch, trainer.step_count)
        done = trainer.epoch >= recipe.training.epochs
        where = "already finished" if done else f"resumed at epoch {trainer.epoch + 1}"
        console.print(f"{where}, step {trainer.step_count}")
    elif first:
        run.create(recipe, _facts(root, split_file, splits) | {"precision": precision})
        data.save_split(splits.split, out / "split.json")
    console.print(f"device: {device}, precision: {precision}" + f", ranks: {world.size}" * (world.size > 1))
    try:
        with _stop_politely(trainer):
            trainer.fit(loader, validation)
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}; continue with: fastmtl train --resume --out {out}") from None
    finally:
        progress.close()
        run.close()
        loader.close()
    if world.size > 1:  # each rank had a part of the images; rank 0 looks at all of them, alone
        validation.close()
        world.close()
        if not first:
            return {}
        validation = build.build_loader(recipe, splits.validation, tasks, train=False, device=device)
    checkpoint.load_model(run.checkpoints / "best", model, device)
    table = ImageTable(tasks)
    found = score(model, tasks, validation, device=device, dtype=trainer.dtype, visit=table)
    validation.close()
    summary = _summary(recipe, "best", found, splits.validation)
    if splits.test.tiles:
        test = build.build_loader(recipe, splits.test, tasks, train=False, device=device)
        of_test = score(model, tasks, test, device=device, dtype=trainer.dtype)
        test.close()
        summary["test"] = _summary(recipe, "best", of_test, splits.test)
    run.write_summary(summary)
    table.write(out, {tile.id: tile.image for tile in splits.validation.tiles})
    for problem in report([out]):
        console.print(f"report: {problem}")
    return summary


def evaluate(
    path: Path,
    root: Path,
    *,
    which: Literal["best", "last"] = "best",
    everything: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Metrics of a run's checkpoint on the tiles under `root`.

    Patients the run was trained on are left out, unless `everything`; damaged tiles too, where the recipe skips them.

    Raises:
        RunError: no run there, data that does not fit it, or nothing left to evaluate on.
    """
    trained = _load(path, which, device)
    recipe, facts = trained.recipe, trained.facts
    try:
        found_tiles = datasets.read_data(recipe, root, _classes(trained))
    except ValueError as error:
        raise RunError(f"{root} does not fit the classes that {path} was trained on: {error}") from error
    folder, damaged = data.usable_tiles(found_tiles, recipe.data.on_damaged)
    seen = set() if everything else set(facts["training_patients"])
    kept = folder.subset(tile.id for tile in folder.tiles if tile.group not in seen)
    if not kept.tiles:
        raise RunError(
            f"every patient in {root} was trained on in {path}; --everything evaluates on them all the same."
        )
    loader = build.build_loader(recipe, kept, trained.tasks, train=False, device=trained.device)
    found = score(trained.model, trained.tasks, loader, device=trained.device, dtype=trained.dtype)
    loader.close()
    return _summary(recipe, which, found, kept) | {
        "num_images_of_training_patients_left_out": len(folder) - len(kept),
        "num_damaged_files": len(damaged),
    }


def predict(
    path: Path, source: Path, out: Path, *, which: Literal["best", "last"] = "best", device: str = "auto"
) -> int:
    """Predict the image or the folder of images `source` into `out`; returns how many.

    Raises:
        RunError: no run there, no images, images that cannot be read, or `out` holds predictions already.
    """
    trained = _load(path, which, device)
    recipe, facts, tasks, model = trained.recipe, trained.facts, trained.tasks, trained.model
    tiles = find_images(source)
    if recipe.data.preprocessing:
        tiles = datasets.preprocessed(data.Dataset(source, (), tuple(tiles)), recipe.data.preprocessing).tiles
    problems = data.check_tiles(tiles)
    if problems:
        raise RunError(f"{len(problems)} of {len(tiles)} images cannot be read, first {problems[0]}.")
    folder = data.Dataset(source, tuple(facts["class_names"]), tuple(tiles))
    loader = build.build_loader(recipe, folder, tasks, train=False, device=trained.device)
    count = write_predictions(model, tasks, (batch.to(trained.device) for batch in loader), tiles, out)
    loader.close()
    return count


def report(paths: Sequence[Path], out: Path | None = None) -> list[str]:
    """Write the page of one run (`out` None: its report.html), or one page that compares several.

    Returns:
        One line for each file or run that is missing or broken; everything else is on the page.

    Raises:
        RunError: none of `paths` is a run.
    """
    runs, problems = [], []
    for path in paths:
        try:
            runs.append(read_run(path))
        except RunError as error:
            problems.append(str(error))
    if not runs:
        raise RunError(" ".join(problems))
    html = render(runs[0]) if len(paths) == 1 else render_comparison(runs)
    if out is None:
        RunFolder(paths[0]).write_report(html)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(html, encoding="utf-8")
    return problems + [problem for run in runs for problem in run.problems]


class _Trained(NamedTuple):
    """A run's network as it was trained, ready to be asked."""

    recipe: Recipe
    facts: dict[str, Any]
    tasks: Sequence[Task]
    model: nn.Module
    device: torch.device
    dtype: torch.dtype | None


def _load(path: Path, which: Literal["best", "last"], device_name: str) -> _Trained:
    run = RunFolder(path)
    recipe, facts = run.recipe(), run.extra()
    device = build.device_of(device_name)
    tasks = build.build_tasks(recipe, facts["class_names"], facts.get("classes", {}))
    model = build.build_model(recipe, tasks, device)
    checkpoint.load_model(run.checkpoints / which, model, device)
    return _Trained(recipe, facts, tasks, model, device, autocast_dtype(recipe.training.precision, device))


def _generate(recipe: Recipe, beside: Path, console: Console) -> Path:
    if not recipe.data.generator:
        raise ConfigError(f"recipe {recipe.name} needs data: add --data DIR.")
    is_slides = recipe.data.generator == "slides"
    folder = beside / ("generated-slides" if is_slides else f"{recipe.data.generator}-tiles")
    if not folder.exists():
        console.print(f"data: making synthetic {'slides' if is_slides else 'tiles'}, once")
    return data.generate_slides(folder) if is_slides else data.generate(folder)


def _classes(trained: _Trained) -> dict[str, list[str]]:
    """The classes that the run's tasks know, by column; new data must have the same."""
    known = {"": trained.facts["class_names"], **trained.facts.get("classes", {})}
    columns = {task.target.column for task in trained.tasks if task.target.kind == "label"}
    return {column or "label": known[column] for column in columns}


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


def _summary(recipe: Recipe, which: str, found: dict[str, Any], folder: data.Dataset) -> dict[str, Any]:
    patients = len({tile.group for tile in folder.tiles})
    return {
        "tasks": found["tasks"],
        "loss": found["loss"],
        "score": found["score"],
        "num_images": found["num_images"],
        "num_patients": patients,
        "recipe": recipe.name,
        "checkpoint": which,
    }


def _count(folder: data.Dataset) -> str:
    return f"{len(folder)} tiles of {len({tile.group for tile in folder.tiles})} patients"


@contextmanager
def _stop_politely(trainer: Trainer) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM saves a checkpoint after the running step; a second Ctrl-C stops at once."""

    def ask(number: int, _frame: Any) -> None:
        trainer.stop_requested = True
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
