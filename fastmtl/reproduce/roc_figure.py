"""ROC curves of the rows: a panel for each fold, and one of all folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from types import ModuleType

from ..evaluation.per_image import FILE
from ..training.run_dir import read_lines
from ..utils.optional_imports import require
from .cells import title
from .drawing import line_style, save
from .plan import Result, RunKey

_BESIDE = 10  # rows whose legend fits into a panel


def roc_figure(module: ModuleType, results: Sequence[Result], task: str, path: Path, scale: str) -> Path | None:
    """The curves of the first seed's runs; None if no row has both classes."""
    sklearn = require("sklearn.metrics", "ROC curves")
    keys = sorted({key for result in results for key in result.folders})
    keys = [key for key in keys if key.seed == keys[0].seed]
    parts = [(f"fold {chr(ord('A') + key.fold)}", [key]) for key in keys]
    parts += [("all folds", keys)] if len(keys) > 1 else []
    known = [part for part in parts if any(_curve(sklearn, result, task, part[1]) for result in results)]
    if not known:
        return None
    across = min(3, len(known))
    down = -(-len(known) // across)
    figure = module.Figure(figsize=(3.5 * across + 0.2, 3.7 * down + 0.3), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for panel, (name, runs) in zip(panels, known, strict=False):
        panel.plot([0, 1], [0, 1], color="#b0b0b0", linewidth=0.8)
        for number, result in enumerate(results):
            if (found := _curve(sklearn, result, task, runs)) is not None:
                wrong, right, area = found
                panel.plot(wrong, right, label=f"{title(result)}  {area:.3f}", **line_style(number))
        panel.set(xlabel="1 - specificity", ylabel="sensitivity", title=name, xlim=(0, 1), ylim=(0, 1.005), aspect=1)
        small = {"fontsize": 6, "handlelength": 1.6, "labelspacing": 0.25}
        if len(results) <= _BESIDE:
            panel.legend(loc="lower right", title="area under the curve", title_fontsize=6, **small)
        else:
            panel.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2, **small)
    for panel in panels[len(known) :]:
        panel.set_axis_off()
    return save(figure, path, f"{task}: ROC on the held-out images, scale {scale}")


def _curve(
    sklearn: ModuleType, result: Result, task: str, runs: Sequence[RunKey]
) -> tuple[Sequence[float], Sequence[float], float] | None:
    truth, shares = answers(result, task, runs)
    if len(set(truth)) < 2 or not all(map(isfinite, shares)):
        return None
    wrong, right, _ = sklearn.roc_curve(truth, shares)
    return wrong, right, sklearn.roc_auc_score(truth, shares)


def answers(result: Result, task: str, runs: Sequence[RunKey] = ()) -> tuple[list[bool], list[float]]:
    """For each held-out image of the runs, or of all: whether it has the task's second class, the finding, and the
    predicted probability."""
    truth, shares = [], []
    for folder in [folder for key, folder in result.folders.items() if key in runs or not runs]:
        for line in read_lines(folder / FILE)[0]:
            tasks = line.get("tasks")
            entry = tasks.get(task) if isinstance(tasks, Mapping) else None
            known = entry.get("probabilities") if isinstance(entry, Mapping) else None
            if isinstance(entry, Mapping) and isinstance(known, Mapping) and len(known) == 2 and "class" in entry:
                _, (finding, share) = known.items()
                truth.append(entry["class"] == finding)
                shares.append(float(share))
    return truth, shares
