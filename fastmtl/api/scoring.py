"""Scores of a trained network: on the held-out images at the end of its training, or on other data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from .. import data
from ..builders import datasets, selection
from ..config import Recipe
from ..evaluation.analyse import analyse
from ..evaluation.per_image import TEST_FILE, ImageTable
from ..evaluation.tta import Views
from ..evaluation.uncertainty import over_patients
from ..protocols import Batch, Task
from ..training import checkpoint
from ..training.eval_loop import evaluate as evaluate_model
from ..training.run_dir import RunError, RunFolder, read_lines
from ..utils.metric_directions import directions_of
from ..utils.words import counted
from . import notices
from .ensembles import load
from .job import Job, say


def evaluate(
    path: Path,
    root: Path,
    *,
    others: Sequence[Path] = (),
    which: Literal["best", "last"] | None = None,
    everything: bool = False,
    device: str = "auto",
    tta: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Compute the metrics of a run's checkpoint on the tiles under `root`.

    Args:
        path: the run folder.
        root: the data.
        others: run folders whose outputs are averaged with those of `path`, for the tasks that all runs have.
        which: the checkpoint; None uses the recipe's training.checkpoint.
        everything: also count patients that a run was trained on, or that chose its epoch.
        device: "auto", "cpu", "cuda" or "cuda:N".
        tta: views of test-time augmentation; None uses the recipe's.

    Returns:
        Scores and counts; "notices" has one line for each oddity of the targets.

    Raises:
        RunError: `path` is not a run, the data do not match it, or no tile is left to evaluate.
        ConfigError: the run's tasks cannot be scored on these masks.
    """
    trained = load(path, which, device, tta, others)
    recipe, facts = trained.recipe, trained.facts
    try:
        found_tiles = datasets.read_data(recipe, root, trained.classes)
    except ValueError as error:
        raise RunError(f"{root} does not match the classes that {path} was trained on: {error}") from error
    folder, damaged = data.usable_tiles(found_tiles, recipe.data.on_damaged)
    patients = () if everything else (*facts["training_patients"], *facts.get("inner_patients", ()))
    seen = {data.identifier_key(str(name)) for name in patients}
    kept = folder.subset(tile.id for tile in folder.tiles if data.identifier_key(tile.group) not in seen)
    if not kept.tiles:
        raise RunError(f"{path} was trained on every patient in {root}; --everything evaluates on them anyway.")
    mask_notices = datasets.check_maps(trained.tasks, [kept])
    maps = notices.MapsSeen(trained.tasks)
    table = ImageTable(trained.tasks, clusters=datasets.patients_of(recipe, root))
    with trained.read(kept) as loader:
        found = evaluate_model(
            trained.model, trained.tasks, loader, device=trained.device, dtype=trained.dtype, visit=_both(table, maps)
        )
    odd = [
        *notices.of_problems([*folder.problems, *mask_notices], root),
        *notices.of_targets(trained.tasks, kept, "evaluated"),
        *maps.notices("evaluated"),
        *notices.of_scores(trained.tasks, found, "evaluated"),
    ]
    return _summary(recipe, trained.tasks, trained.which, found, kept, table) | {
        **({"ensemble": [str(one) for one in (path, *others)]} if others else {}),
        "num_images_of_training_patients_left_out": len(folder) - len(kept),
        "num_damaged_files": len(damaged),
        "notices": odd,
    }


def score_training(job: Job) -> dict[str, Any]:
    """Score the recipe's checkpoint on all held-out images and on the test images, if there are any.

    Writes summary.json, evaluation.jsonl and the analyses; returns the summary.
    """
    run, recipe, model, tasks, splits = RunFolder(job.out), job.recipe, job.model, job.tasks, job.splits
    which = recipe.training.checkpoint
    checkpoint.load_model(run.checkpoints / which, model, job.device)
    judged = Views(model, tasks, recipe.training.tta) if recipe.training.tta else model
    clusters = datasets.patients_of(recipe, Path(job.facts["data"]))
    table, maps = ImageTable(tasks, clusters=clusters), notices.MapsSeen(tasks)
    with job.read(splits.validation) as validation:
        found = evaluate_model(judged, tasks, validation, device=job.device, dtype=job.dtype, visit=_both(table, maps))
    chosen = selection.chosen_by(recipe, inner=bool(splits.inner.tiles), test=bool(splits.test.tiles))
    result = _summary(recipe, tasks, which, found, splits.validation, table)
    result |= {"protocol": recipe.protocol, "chosen_by": chosen}
    odd = [*maps.notices("held-out"), *notices.of_scores(tasks, found, "held-out")]
    if splits.test.tiles:
        test_table, maps = ImageTable(tasks, keep=0, clusters=clusters), notices.MapsSeen(tasks)
        with job.read(splits.test) as test:
            of_test = evaluate_model(
                judged, tasks, test, device=job.device, dtype=job.dtype, visit=_both(test_table, maps)
            )
        result["test"] = _summary(recipe, tasks, which, of_test, splits.test, test_table)
        test_table.write_lines(job.out / TEST_FILE)
        odd += [*maps.notices("test"), *notices.of_scores(tasks, of_test, "test")]
    say(odd, job.console)
    odd += notices.of_epochs(tasks, found, run.records(), job.splits.watching_name)
    found_damaged = (record for path in job.out.glob("quarantine*.jsonl") for record in read_lines(path)[0])
    if damaged := {str(record.get("tile")) for record in found_damaged}:  # several ranks may have found the same
        odd.append(f"{counted(len(damaged), 'damaged tile')} set aside in training: see quarantine.jsonl")
    odd += notices.of_skipped_steps(run.records())
    odd += notices.of_reused_tiles(run.records())
    result["notices"] = [*job.notices, *odd]
    run.write_summary(result)
    table.write(job.out, {tile.id: tile.image for tile in splits.validation.tiles})
    analyse(job.out, recipe, model, tasks, splits.validation, device=job.device, stain=job.stain)
    return result


def _both(table: ImageTable, maps: notices.MapsSeen) -> Callable[[Batch, dict[str, Any]], None]:
    def look(batch: Batch, outputs: Mapping[str, object]) -> None:
        table(batch, outputs)
        maps(batch, outputs)

    return look


def _summary(
    recipe: Recipe, tasks: Sequence[Task], which: str, found: dict[str, Any], folder: data.Dataset, table: ImageTable
) -> dict[str, Any]:
    """The content of summary.json and of `fastmtl eval`, without the notices."""
    patients = len({tile.group for tile in folder.tiles})
    return {
        "tasks": found["tasks"],
        "loss": found["loss"],
        "score": found["score"],
        "num_images": found["num_images"],
        "num_patients": patients,
        "patients": over_patients(table.lines, found["tasks"]),
        "higher_is_better": directions_of(tasks),
        "recipe": recipe.name,
        "checkpoint": which,
    }
