"""Loss curves of the rows: a line of panels per row, all tasks together and then each task, with the stages marked."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import Any

from ..report.curves import look_up, stages
from ..training.run_dir import read_lines
from ..utils.json_toml import JsonObject
from ..utils.optional_imports import require
from .cells import title
from .drawing import COLOURS, paged, pages, save, wrapped
from .plan import Result, RunKey

_ROWS = 8  # of one page
_GREY = "#7a7a7a"
_LOG = 30.0  # the largest loss of a panel divided by the smallest, from which the axis is logarithmic


def loss_figures(module: ModuleType, results: Sequence[Result], out: Path, scale: str) -> list[Path]:
    """Write losses.png, or losses-1.png, ... of many rows: of each row's first run."""
    having = [(result, min(result.folders)) for result in results if result.folders]
    curves = [(result, key, _records(result.folders[key])) for result, key in having]
    curves = [one for one in curves if one[2]]
    parts = pages(curves, _ROWS)
    return [
        _page(module, part, paged(out, "losses", number, len(parts)), scale) for number, part in enumerate(parts, 1)
    ]


def _records(folder: Path) -> list[JsonObject]:
    lines = read_lines(folder / "metrics.jsonl")[0]
    return [line for line in lines if isinstance(line.get("epoch"), int) and isinstance(line.get("loss"), dict)]


def _page(
    module: ModuleType, curves: Sequence[tuple[Result, RunKey, list[JsonObject]]], path: Path, scale: str
) -> Path:
    ticker = require("matplotlib.ticker", "drawing the figures", "bench")
    tasks = list(dict.fromkeys(task for _, _, records in curves for task in _tasks(records)))
    columns = (["all tasks"] if len(tasks) > 1 else []) + tasks
    size = (0.9 + 2.15 * len(columns), 0.75 + 1.35 * len(curves))
    figure = module.Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(curves), len(columns), squeeze=False)
    colours = {"all tasks": _GREY} | dict(zip(tasks, COLOURS, strict=False))
    for (result, key, records), line in zip(curves, grid, strict=True):
        for column, panel in zip(columns, line, strict=True):
            together = column == "all tasks" and len(_tasks(records)) > 1
            own = tasks if together else [column]
            drawn = (
                _all_tasks(panel, records, tasks) if together else _one_task(panel, records, column, colours[column])
            )
            if not drawn:
                panel.set_axis_off()
                continue
            _mark(panel, records)
            if len(records) == 1:
                panel.set_xticks([records[0]["epoch"]])
            else:
                panel.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
            values = [value for task in own for record in records if (value := _loss(record, task)) > 0]
            if values and max(values) > _LOG * min(values) and all(value > 0 for value in drawn):
                panel.set_yscale("log")
                panel.yaxis.set_minor_formatter(ticker.NullFormatter())
            panel.tick_params(length=2)
            first, last = records[0]["epoch"], records[-1]["epoch"]
            room = 0.03 * (last - first) or 0.5
            panel.set_xlim(first - room, last + room)  # alike in all panels of a row, whichever stages have the task
        if not line[0].lines:
            line[0].set_axis_on()
            line[0].set(xticks=[], yticks=[])
            line[0].spines[["left", "bottom"]].set_visible(False)
        line[0].set_ylabel(f"{wrapped(title(result), 20)}\n{key}", fontsize=7)
    for column, panel in zip(columns, grid[0], strict=True):
        panel.set_title(column.replace("_", " "), pad=9)
    for panel in grid[-1]:
        panel.set_xlabel("epoch")
    _legend(figure, tasks)
    return save(figure, path, f"Losses, scale {scale}")


def _tasks(records: Sequence[JsonObject]) -> list[str]:
    return list(dict.fromkeys(task for record in records for task in record["loss"]))


def _loss(record: JsonObject, task: str) -> float:
    return look_up(lambda one: one["loss"][task], record)


def _all_tasks(panel: Any, records: Sequence[JsonObject], tasks: Sequence[str]) -> list[float]:
    """The training losses on one scale, and their plain sum where a row trains several at a time."""
    drawn = []
    for number, task in enumerate(tasks):
        drawn += _line(panel, records, [_loss(record, task) for record in records], color=COLOURS[number])
    sums = [sum(record["loss"].values()) if len(record["loss"]) > 1 else float("nan") for record in records]
    return drawn + _line(panel, records, sums, color=_GREY, linestyle=":")


def _one_task(panel: Any, records: Sequence[JsonObject], task: str, color: str) -> list[float]:
    """The training and the held-out loss; of a single epoch a full and an open circle."""
    drawn = _line(panel, records, [_loss(record, task) for record in records], color=color)
    if not drawn:
        return []
    held_out = [look_up(lambda one: one["validation"]["loss"][task], record) for record in records]
    return drawn + _line(panel, records, held_out, color=color, linestyle="--", markerfacecolor="white")


def _line(panel: Any, records: Sequence[JsonObject], values: Sequence[float], **style: Any) -> list[float]:
    """Draw what is finite; returns it."""
    known = [(record["epoch"], value) for record, value in zip(records, values, strict=True) if isfinite(value)]
    if known:
        marker = "o" if len(known) == 1 else None
        panel.plot(*zip(*known, strict=True), marker=marker, markersize=3, **style)
    return [value for _, value in known]


def _mark(panel: Any, records: Sequence[JsonObject]) -> None:
    """A line before each later stage, and its name along it."""
    for name, first, _ in stages(records)[1:]:
        panel.axvline(first - 0.5, color=_GREY, linewidth=0.7)
        place = {"xycoords": ("data", "axes fraction"), "ha": "left", "va": "top", "fontsize": 6, "rotation": 90}
        panel.annotate(f" {name.replace('_', ' ')}", (first - 0.5, 0.98), color="#555555", **place)


def _legend(figure: Any, tasks: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=COLOURS[number]) for number in range(len(tasks))]
    names = [task.replace("_", " ") for task in tasks]
    if len(tasks) > 1:
        lines.append(Line2D([], [], color=_GREY, linestyle=":"))
        names.append("sum of the training losses")
    both: dict[str, Any] = {"color": _GREY, "marker": "o", "markersize": 3}
    lines += [
        Line2D([], [], **both, linestyle="-"),
        Line2D([], [], **both, linestyle="--", markerfacecolor="white"),
    ]
    names += ["training", "held out"]
    figure.legend(lines, names, loc="outside lower center", ncols=min(len(names), 5))
