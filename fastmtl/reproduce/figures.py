"""Figures of a reproduction: scores of the rows, losses, ROC curves, errors, and the same images by method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from .cells import cell, label, metrics_of, title
from .drawing import COLOURS, drawing, save, wrapped
from .error_figure import error_figures
from .image_figures import feature_figure, prediction_figures, saliency_figures
from .loss_figure import loss_figures
from .plan import Result
from .roc_figure import roc_figure
from .samples import Samples, see

SAMPLES = 4


def write_figures(
    results: Sequence[Result],
    out: Path,
    scale: str,
    samples: Samples = SAMPLES,
    note: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Write the figures to `out`; returns their files.

    Args:
        results: of the rows, in the table's order.
        out: the folder of the reproduction.
        scale: for the titles.
        samples: number of held-out images to show, or their names; 0 shows none.
        note: called with a line for each thing that cannot be shown.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    paper = results[0].row.published.paper
    with drawing() as module:
        written = [_scores(module, results, out / "figures.png", scale)]
        written += loss_figures(module, results, out, scale)
        written += [roc_figure(module, results, task, out / f"roc-{task}.png", scale) for task in paper.curves]
        written += error_figures(module, results, out, scale)
        written += _images(module, results, out, scale, samples, note)
    return [path for path in written if path is not None]


def _scores(module: ModuleType, results: Sequence[Result], path: Path, scale: str) -> Path | None:
    """A panel per metric, a line per row: the published value, and ours with its standard deviation over runs."""
    keys = [key for key in metrics_of(results) if any(cell(result, key).ours for result in results)]
    if not keys:
        return None
    figure = module.Figure(figsize=(2.2 + 2.2 * len(keys), 1.2 + 0.3 * len(results)), layout="constrained")
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    places = list(range(len(results)))[::-1]
    for panel, key in zip(panels, keys, strict=True):
        for place, result in zip(places, results, strict=True):
            one = cell(result, key)
            if one.published is not None:
                panel.errorbar(one.published, place + 0.14, xerr=one.spread, fmt="s", color=COLOURS[1], markersize=4)
            if one.ours is not None:
                panel.errorbar(one.ours.mean, place - 0.14, xerr=one.ours.std, fmt="o", color=COLOURS[0], markersize=4)
        panel.set_title(wrapped(label(key), 24))
        panel.set_yticks(places, [title(result) for result in results])
        panel.set_ylim(-0.5, len(results) - 0.5)  # otherwise two rows overlap the frame
        panel.grid(axis="x", alpha=0.3)
        panel.locator_params(axis="x", nbins=5)
    heading = f"Published: orange squares; ours at scale {scale}: blue circles; bars: standard deviation"
    return save(figure, path, heading)


def _images(
    module: ModuleType,
    results: Sequence[Result],
    out: Path,
    scale: str,
    samples: Samples,
    note: Callable[[str], None],
) -> list[Path | None]:
    if not samples:
        return []
    paper = results[0].row.published.paper
    by_name = {result.row.name: result for result in results if result.folders}
    salient = [name for name in paper.saliency if name in by_name] or (list(by_name) if paper.saliency else [])
    maps = [name for name in paper.feature_maps if name in by_name] or (list(by_name) if paper.feature_maps else [])
    task = _saliency_task(by_name, salient)
    try:
        seen = see(results, samples, note, saliency_task=task, convolutions=maps)
    except ValueError as error:  # a name that no row held out
        note(f"no figures of images: {error}")
        return []
    if seen is None:
        return []
    titles = {result.row.name: title(result) for result in results}
    written: list[Path | None] = [*prediction_figures(module, seen, titles, out, scale)]
    written += saliency_figures(module, seen, salient, titles, task, out, scale) if task else []
    return [*written, feature_figure(module, seen, maps, titles, out, scale)]


def _saliency_task(rows: dict[str, Result], salient: Sequence[str]) -> str:
    """The task that most of the rows have, of equal ones the last, a classification; "" without rows."""
    counts: dict[str, int] = {}
    for name in salient:
        for task in rows[name].row.recipe.tasks:
            counts[task] = counts.get(task, 0) + 1
    return max(reversed(counts), key=lambda task: counts[task]) if counts else ""
