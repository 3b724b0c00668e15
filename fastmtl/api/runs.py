"""Uses of a trained run: predictions, analyses and the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch

from .. import data
from ..builders import datasets
from ..data.slides.remote.path import slide_path
from ..distributed import World
from ..evaluation.analyse import analyse as write_analyses
from ..prediction.images import damage_of_images, find_images, finish_images, images_there, write_predictions
from ..prediction.output_dir import Predicted, check_apart, claimed, stamp_of
from ..prediction.sharing import share_batches
from ..prediction.slide_maps import MapOptions
from ..prediction.slides import check_places, predict_slides
from ..report import read_run, render, render_comparison
from ..report.past_run import PastRun
from ..training.run_dir import RunError, RunFolder
from ..utils.atomic_io import naming
from .ensembles import Trained, load

_PATIENCE = 30 * 24 * 3600.0  # seconds


def predict(
    path: Path,
    source: str | Path,
    out: Path,
    *,
    others: Sequence[Path] = (),
    which: Literal["best", "last"] | None = None,
    device: str = "auto",
    tta: Sequence[str] | None = None,
    on_damaged: Literal["raise", "skip"] | None = None,
    maps: MapOptions | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Predicted:
    """Predict images or whole slides into `out`. If a folder has slides, only the slides are predicted.

    If `out` already has predictions of the same run, weights, views and input, only missing ones are added. Under
    `torchrun` the ranks share the slides or images, and all return the same.

    Args:
        path: the run folder.
        source: an image, a slide, a folder of them, or a manifest of slides. A URL as text: a `Path` loses a slash.
        out: folder to create or to continue.
        others: run folders whose outputs are averaged with those of `path`, for the tasks that all runs have.
        which: the checkpoint; None uses the recipe's training.checkpoint.
        device: "auto", "cpu", "cuda" or "cuda:N".
        tta: views of test-time augmentation; None uses the recipe's.
        on_damaged: unreadable images end the prediction before it begins, or are set aside, as slides always are; None
            uses the recipe's data.on_damaged.
        maps: what is written of the maps of slides.
        note: called with one line for each slide that is done or unreadable, and for ignored input.

    Raises:
        RunError: `path` is not a run, its network reads metadata, there is nothing to predict, images are unreadable,
            `out` contains other files, or another process is writing to `out`.
        LostRank: another rank has ended.
    """
    world, source = World.from_environment(), slide_path(source)
    trained = load(path, which, device, tta, others, world.local_rank)
    trained.check_images_suffice()
    if trained.recipe.data.index_folder:
        data.use_index_folder(trained.recipe.data.index_folder)
    views = trained.recipe.training.tta if tta is None else tta
    timeout = trained.recipe.training.rank_timeout
    # Ranks exchange names and helpers' outputs, by the CPU also with GPUs; the first to be done waits for the last one.
    with world.initialize(torch.device("cpu"), timeout, patience=_PATIENCE), ExitStack() as lock:
        found = None
        if world.rank == 0:
            found = _claim(trained, views, source, out, maps or MapOptions(), note, lock)
        slides, images = world.broadcast(found or (None, []))
        if slides is None:
            on_damaged = on_damaged or trained.recipe.data.on_damaged
            return _predict_images(trained, source, images, out, world, skip_damaged=on_damaged == "skip")
        config = trained.recipe.data
        return predict_slides(
            slides.slides,
            out,
            model=trained.model,
            tasks=trained.tasks,
            grid=data.GridOptions(config.tile_size, config.mpp, config.overlap, config.min_tissue),
            read=trained.read,
            device=trained.device,
            dtype=trained.dtype,
            mpp=slides.mpp,
            note=note,
            world=world,
            options=maps,
            batch_size=config.val_batch_size or config.batch_size,
        )


def _claim(
    trained: Trained,
    views: Sequence[str],
    source: Path,
    out: Path,
    maps: MapOptions,
    note: Callable[[str], None],
    lock: ExitStack,
) -> tuple[data.SlideFiles | None, list[data.Tile]]:
    """The slides or images to predict; `out` is created, and locked until `lock` is closed."""
    root = Path(trained.recipe.data.root) if trained.recipe.data.root else None
    if root is not None and not source.resolve().is_relative_to(root.resolve()):
        root = None  # the recipe's root belongs to the training data
    slides = data.find_slides(source, root=root)
    if slides is None:
        images = find_images(source)
        home = source if source.is_dir() else source.parent
        lock.enter_context(claimed(out, stamp_of(trained.weights, views, "images", home)))
        check_apart((Path(image.id).with_suffix("").as_posix() for image in images), out)
        return None, images
    if slides.num_images:
        note(f"{slides.num_images} image files among the slides are skipped; predict their folder separately")
    check_places(slides.slides, out)
    changed = {name: value for name, value in asdict(maps).items() if value != getattr(MapOptions(), name)}
    lock.enter_context(claimed(out, stamp_of(trained.weights, views, "slides", slides.root, changed)))
    check_apart(slides.slides, out)
    return slides, []


def _predict_images(
    trained: Trained, source: Path, images: Sequence[data.Tile], out: Path, world: World, *, skip_damaged: bool
) -> Predicted:
    there = world.broadcast(images_there(out) if world.rank == 0 else set())
    tiles = [tile for tile in images if tile.id not in there]
    recipe = trained.recipe
    if recipe.data.preprocessing:
        tiles = list(datasets.preprocessed(data.Dataset(source, (), tuple(tiles)), recipe.data.preprocessing).tiles)
    damaged = world.gather_entries(damage_of_images(tiles[world.rank :: world.size]))
    if damaged and not skip_damaged:
        name, reason = min(damaged.items())
        raise RunError(
            f"{len(damaged)} of {len(tiles)} images cannot be read, first {name}: {reason}. Repair them, or set them "
            "aside with --on-damaged skip."
        )
    sound = [tile for tile in tiles if tile.id not in damaged]
    batch_size = recipe.data.val_batch_size or recipe.data.batch_size
    own = tuple(share_batches(sound, batch_size, world.rank, world.size))
    if own:
        with trained.read(data.Dataset(source, tuple(trained.facts["class_names"]), own)) as loader:
            batches = (batch.to(trained.device) for batch in loader)
            write_predictions(trained.model, trained.tasks, batches, own, out, world.rank)
            damaged |= {entry["tile"]: entry["reason"] for entry in loader.quarantine}
    damaged = world.gather_entries(damaged)  # waits for all ranks
    if world.rank == 0:
        finish_images(out, {tile.id: (source if source.is_file() else source / tile.id) for tile in images}, damaged)
    return Predicted("images", len(tiles) - len(damaged), len(images) - len(tiles), len(damaged))


def analyse(path: Path, *, device: str = "auto") -> list[str]:
    """Recompute saliency maps, feature maps and filters from the evaluation checkpoint and the run's own data.

    Training computes them at the end; use this for runs of earlier versions and for failed analyses.

    Returns:
        One line for each analysis that failed.

    Raises:
        RunError: `path` is not a run, the run was not evaluated, or its data no longer exist.
    """
    if not (path / "evaluation.jsonl").is_file():
        raise RunError(
            f"{path} has no evaluation.jsonl: its training is incomplete; continue it with fastmtl train --resume."
        )
    trained = load(path, None, device, ())
    root = Path(trained.facts["data"])
    if not root.exists():
        raise RunError(f"the data of {path} were in {root}, which no longer exists: analyses need the images.")
    dataset = datasets.read_data(trained.recipe, root, trained.classes)
    return write_analyses(
        path, trained.recipe, trained.model, trained.tasks, dataset, device=trained.device, stain=trained.stain
    )


def report(paths: Sequence[Path], out: Path | None = None) -> list[str]:
    """Write the page of one run (`out` None: its report.html), or one page that compares several.

    Returns:
        One line for each file or run that is missing or broken; the page shows everything else.

    Raises:
        RunError: none of `paths` is a run.
    """
    runs: list[PastRun] = []
    problems: list[str] = []
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
        with naming(out):
            out.write_text(html, encoding="utf-8")
    return problems + [problem for run in runs for problem in run.problems]
