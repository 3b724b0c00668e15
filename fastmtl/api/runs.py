"""Uses of a trained run: predictions, analyses and the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from .. import data
from ..builders import datasets
from ..evaluation.analyse import analyse as write_analyses
from ..prediction.images import find_images, images_there, write_predictions
from ..prediction.output_dir import Predicted, check_apart, claimed, stamp_of
from ..prediction.slides import check_places, predict_slides
from ..report import read_run, render, render_comparison
from ..report.past_run import PastRun
from ..training.run_dir import RunError, RunFolder
from ..utils.atomic_io import naming
from .ensembles import Trained, load


def predict(
    path: Path,
    source: Path,
    out: Path,
    *,
    others: Sequence[Path] = (),
    which: Literal["best", "last"] | None = None,
    device: str = "auto",
    tta: Sequence[str] | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Predicted:
    """Predict images or whole slides into `out`. If a folder has slides, only the slides are predicted.

    If `out` already has predictions of the same run, weights, views and input, only missing ones are added.

    Args:
        path: the run folder.
        source: an image, a slide, a folder of them, or a manifest of slides.
        out: folder to create or to continue.
        others: run folders whose outputs are averaged with those of `path`, for the tasks that all runs have.
        which: the checkpoint; None uses the recipe's training.checkpoint.
        device: "auto", "cpu", "cuda" or "cuda:N".
        tta: views of test-time augmentation; None uses the recipe's.
        note: called with one line for each slide that is done or unreadable, and for ignored input.

    Raises:
        RunError: `path` is not a run, there is nothing to predict, images are unreadable, `out` contains other files,
            or another process is writing to `out`.
    """
    trained = load(path, which, device, tta, others)
    config = trained.recipe.data
    if config.index_folder:
        data.use_index_folder(config.index_folder)
    views = trained.recipe.training.tta if tta is None else tta
    root = Path(config.root) if config.root else None
    if root is not None and not source.resolve().is_relative_to(root.resolve()):
        root = None  # the recipe's root belongs to the training data
    slides = data.find_slides(source, root=root)
    if slides is None:
        images = find_images(source)
        home = source if source.is_dir() else source.parent
        with claimed(out, stamp_of(trained.weights, views, "images", home)):
            check_apart((Path(image.id).with_suffix("").as_posix() for image in images), out)
            return _predict_images(trained, source, images, out)
    if slides.num_images:
        note(f"{slides.num_images} image files among the slides are skipped; predict their folder separately")
    check_places(slides.slides, out)
    with claimed(out, stamp_of(trained.weights, views, "slides", slides.root)):
        check_apart(slides.slides, out)
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
        )


def _predict_images(trained: Trained, source: Path, images: Sequence[data.Tile], out: Path) -> Predicted:
    there = images_there(out)
    tiles = [tile for tile in images if tile.id not in there]
    if not tiles:
        return Predicted("images", 0, len(images))
    recipe = trained.recipe
    if recipe.data.preprocessing:
        tiles = datasets.preprocessed(data.Dataset(source, (), tuple(tiles)), recipe.data.preprocessing).tiles
    problems = data.check_tiles(tiles)
    if problems:
        raise RunError(f"{len(problems)} of {len(tiles)} images cannot be read, first {problems[0]}.")
    folder = data.Dataset(source, tuple(trained.facts["class_names"]), tuple(tiles))
    with trained.read(folder) as loader:
        batches = (batch.to(trained.device) for batch in loader)
        count = write_predictions(trained.model, trained.tasks, batches, tiles, out)
    return Predicted("images", count, len(images) - len(tiles))


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
