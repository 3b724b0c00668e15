"""False positive and false negative pixels of each structure, row by row, and their ratio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from ..evaluation.bootstrap import intervals, mean_of
from ..evaluation.statistics import statistic_of
from .cells import title
from .drawing import COLOURS, save, wrapped
from .plan import Result
from .runs import ImageResults


def error_figures(module: ModuleType, results: Sequence[Result], out: Path, scale: str) -> list[Path]:
    """Write errors-TASK.png for each task with several structures."""
    images = ImageResults(results)
    names: dict[str, dict[str, None]] = {}
    for result in results:
        for key in result.folders:
            for line in images.lines(result, key):
                for task, entry in line["tasks"].items():
                    if isinstance(entry.get("counts"), dict) and len(entry["counts"]) > 1:
                        names.setdefault(task, {}).update(dict.fromkeys(entry["counts"]))
    return [
        path
        for task, structures in names.items()
        if (path := _draw(module, results, images, task, list(structures), out, scale)) is not None
    ]


def _draw(
    module: ModuleType,
    results: Sequence[Result],
    images: ImageResults,
    task: str,
    structures: Sequence[str],
    out: Path,
    scale: str,
) -> Path | None:
    having = [result for result in results if any(_sums(result, images, task, one) is not None for one in structures)]
    if not having:
        return None
    size = (1.7 + 2.9 * len(structures), 1.0 + 0.36 * len(having))
    figure = module.Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(structures), sharey=True, squeeze=False)[0]
    places = np.arange(len(having))[::-1]
    reach = 0.0
    for panel, structure in zip(panels, structures, strict=True):
        for place, result in zip(places, having, strict=True):
            found = _sums(result, images, task, structure)
            if found is None or not found.sum():
                continue
            true = max(found[0] + found[2], 1.0)
            wrong, missed = found[1] / true, found[2] / true
            panel.barh(place, wrong, height=0.62, color=COLOURS[1])
            panel.barh(place, -missed, height=0.62, color=COLOURS[0])
            reach = max(reach, wrong, missed)
        panel.axvline(0, color="black", linewidth=0.6)
        panel.set_title(structure.replace("_", " "))
        panel.set_xlabel("share of the true pixels")
        panel.set_yticks(places, [wrapped(title(result), 34) for result in having])
        panel.set_ylim(-0.6, len(having) - 0.4)
        panel.xaxis.set_major_formatter(lambda value, _: f"{abs(value):.0%}")
        panel.locator_params(axis="x", nbins=5)
        panel.tick_params(axis="y", length=0)
    reach = reach or 1.0
    for panel, structure in zip(panels, structures, strict=True):
        panel.set_xlim(-1.12 * reach, 2.4 * reach)
        for place, result in zip(places, having, strict=True):
            panel.text(
                2.08 * reach, place, _ratio(result, images, task, structure), fontsize=6, ha="right", va="center"
            )
    from matplotlib.patches import Patch

    bars = [Patch(color=COLOURS[0]), Patch(color=COLOURS[1])]
    figure.legend(bars, ["false negative", "false positive"], loc="outside lower center", ncols=2)
    heading = f"{task}: wrong pixels of the held-out images, scale {scale}; FP : FN with its 95% interval over patients"
    return save(figure, out / f"errors-{task}.png", heading)


def _sums(result: Result, images: ImageResults, task: str, structure: str) -> np.ndarray | None:
    """Pixels that are right, wrong and missed, over all runs."""
    found = [
        counts[structure]
        for key in result.folders
        for line in images.lines(result, key)
        if structure in (counts := line["tasks"].get(task, {}).get("counts", {}))
    ]
    return np.array(found, dtype=np.float64).sum(0) if found else None


def _ratio(result: Result, images: ImageResults, task: str, structure: str) -> str:
    statistics = [
        one
        for key in sorted(result.folders)
        if (one := statistic_of(images.lines(result, key), task, f"per_class.fp_to_fn.{structure}")) is not None
    ]
    value = mean_of(statistics)
    if not np.isfinite(value):
        return ""
    span = intervals({"": statistics}, 2_000).get("")
    return f"{value:.3g}" + ("" if span is None else f" [{span.low:.3g}, {span.high:.3g}]")
