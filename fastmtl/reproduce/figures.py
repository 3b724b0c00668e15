"""Plots of a reproduction: published values and ours, and ROC curves if the paper has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from types import ModuleType

from ..training.run_dir import read_lines
from ..utils.optional_imports import require
from .plan import Result
from .tables import cell, metrics_of

PUBLISHED, OURS = "#d55e00", "#0072b2"  # distinguishable for colour-blind readers


def write_figures(results: Sequence[Result], out: Path, scale: str) -> list[Path]:
    """Write figures.png and, for a paper with `curves`, roc-TASK.png to `out`; returns the written files.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", "drawing the figures", "bench")
    written = [_compare(figure_module, results, out / "figures.png", scale)]
    for task in results[0].row.published.paper.curves:
        written.append(_curves(figure_module, results, task, out / f"roc-{task}.png", scale))
    return [path for path in written if path is not None]


def _compare(module: ModuleType, results: Sequence[Result], path: Path, scale: str) -> Path | None:
    """A panel per metric, a line per row: the published value, and ours with its standard deviation over folds."""
    keys = [key for key in metrics_of(results) if any(cell(result, key).ours for result in results)]
    if not keys:
        return None
    figure = module.Figure(figsize=(2.2 + 2.4 * len(keys), 1.2 + 0.3 * len(results)), layout="constrained")
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    places = list(range(len(results)))[::-1]
    for panel, key in zip(panels, keys, strict=True):
        for place, result in zip(places, results, strict=True):
            one = cell(result, key)
            if one.published is not None:
                panel.errorbar(one.published, place + 0.12, xerr=one.spread, fmt="s", color=PUBLISHED, markersize=5)
            if one.ours is not None:
                panel.errorbar(one.ours.mean, place - 0.12, xerr=one.ours.std, fmt="o", color=OURS, markersize=5)
        panel.set_title(key.replace("_", " ").replace(".", "\n"), fontsize=9)
        panel.set_yticks(places, [result.row.name for result in results], fontsize=8)
        panel.set_ylim(-0.5, len(results) - 0.5)  # otherwise two rows overlap the frame
        panel.grid(axis="x", alpha=0.3)
    figure.suptitle(f"published (squares, orange) and ours at scale {scale} (circles, blue)", fontsize=9)
    figure.savefig(path, dpi=150)
    return path


def _curves(module: ModuleType, results: Sequence[Result], task: str, path: Path, scale: str) -> Path | None:
    """ROC of each row over the held-out images of all its folds."""
    sklearn = require("sklearn.metrics", "ROC curves")
    figure = module.Figure(figsize=(5, 5), layout="constrained")
    panel = figure.subplots()
    drawn = False
    for number, result in enumerate(results):
        truth, shares = _answers(result, task)
        if len(set(truth)) < 2 or not all(map(isfinite, shares)):
            continue
        wrong, right, _ = sklearn.roc_curve(truth, shares)
        area = sklearn.roc_auc_score(truth, shares)
        panel.plot(wrong, right, ("-", "--", ":")[number // 10 % 3], label=f"{result.row.name}, area {area:.3f}")
        drawn = True
    if not drawn:
        return None
    panel.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    panel.set(xlabel="1 - specificity", ylabel="sensitivity", title=f"{task}, scale {scale}")
    panel.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    return path


def _answers(result: Result, task: str) -> tuple[list[bool], list[float]]:
    """For each held-out image: whether it has the task's second class, the finding, and the predicted probability."""
    truth, shares = [], []
    for folder in result.folders.values():
        for line in read_lines(folder / "evaluation.jsonl")[0]:
            tasks = line.get("tasks")
            entry = tasks.get(task) if isinstance(tasks, Mapping) else None
            known = entry.get("probabilities") if isinstance(entry, Mapping) else None
            if isinstance(entry, Mapping) and isinstance(known, Mapping) and len(known) == 2 and "class" in entry:
                _, (finding, share) = known.items()
                truth.append(entry["class"] == finding)
                shares.append(float(share))
    return truth, shares
