"""Learning curves: loss and scores of each task over the epochs, with the stages marked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html import escape
from math import isfinite, nan
from typing import Any

from ..utils.json_toml import JsonMapping, JsonObject
from ..utils.metric_directions import direction_of
from ..utils.score_names import set_and_task
from .charts import Line, line_chart
from .past_run import PastRun

_SHORT = {"auroc": "AUROC", "iou": "IoU", "mae": "MAE", "rmse": "RMSE", "r2": "R²"}


def learning_section(run: PastRun) -> str:
    """Charts of each task: training and validation losses, validation scores; then the learning rate."""
    records = run.records
    if not records:
        return "<h2>Learning curves</h2><p class=soft>No curves: this run's metrics.jsonl has no epochs.</p>"
    marks = _marks(records)
    last: JsonObject = {}  # for each task the last epoch that evaluated it
    for record in records:
        last |= record.get("validation", {}).get("tasks", {})
    parts = ["<h2>Learning curves</h2>", _note(records, run.watching)]
    for task in dict.fromkeys(task for record in records for task in record["loss"]):
        figures = [_losses(records, task, run.watching, marks)]
        for name, metrics in last.items():
            if set_and_task(name)[1] == task:
                figures += _scores(records, name, metrics, run.watching, marks)
        parts.append(f"<h3>{escape(task)}</h3><div class=grid>{''.join(figures)}</div>")
    rate = curve(records, "after each epoch", lambda r: r["lr"])
    if any(map(isfinite, rate.ys)):
        highest = f"at most {max(filter(isfinite, rate.ys)):.2g}"
        chart = line_chart("Learning rate", [replace(rate, said=highest)], marks=marks)
        parts.append(f"<h3>All tasks</h3><div class=grid>{chart}</div>")
    return "".join(parts)


def curve(records: Sequence[JsonMapping], name: str, find: Callable[[JsonMapping], Any]) -> Line:
    """A line over the epochs, with gaps if `find` finds no number."""
    return Line(name, [record["epoch"] for record in records], [look_up(find, record) for record in records])


def label(metric: str) -> str:
    """A metric's name for display.

    >>> label("per_class")
    'Per class'
    """
    return _SHORT.get(metric) or metric.replace("_", " ").capitalize()


def stages(records: Sequence[JsonMapping]) -> list[tuple[str, int, int]]:
    """Name, first and last epoch of each stage; [] for a run without stages."""
    epochs: dict[str, list[int]] = {}
    for record in records:
        if "stage" in record:
            epochs.setdefault(str(record["stage"]), []).append(record["epoch"])
    return [(name, min(found), max(found)) for name, found in epochs.items()]


def step_marks(records: Sequence[JsonMapping]) -> dict[float, str]:
    """The last step before each stage's first, for charts over steps."""
    ends = {int(record["epoch"]): look_up(lambda r: r["step"], record) for record in records}
    found = {ends.get(int(place - 0.5), 0.0): name for place, name in _marks(records).items()}
    return {step: name for step, name in found.items() if isfinite(step)}


def score_chart(title: str, lines: Sequence[Line], marks: Mapping[float, str] | None = None) -> str:
    """Scores between 0 and 1 are drawn over this whole range."""
    shares = all(0 <= y <= 1 for line in lines for y in line.ys if isfinite(y))
    return line_chart(title, lines, high=1.0 if shares else None, marks=marks)


def look_up(find: Callable[[JsonMapping], Any], record: JsonMapping) -> float:
    """A number from a record; NaN if it is missing, as in files of other versions."""
    try:
        return float(find(record))
    except (KeyError, IndexError, TypeError, ValueError):
        return nan


def _note(records: Sequence[JsonMapping], watching: str) -> str:
    of = "the held-out images" if watching == "held out" else "the inner share, which chose the epoch,"
    note = f"The numbers beside the names are the last that are known. Scores are of {of} only: "
    note += "training keeps the losses of its images, as it augments them and while the weights move."
    parts = stages(records)
    spans = {name: f"epoch {last}" if first == last else f"epochs {first} to {last}" for name, first, last in parts}
    said = "; ".join(f"{name}: {span}" for name, span in spans.items())
    staged = f"<p class=soft>Stages: {escape(said)}.</p>" if parts else ""
    return f"<p class=soft>{note}</p>{staged}"


def _marks(records: Sequence[JsonMapping]) -> dict[float, str]:
    """Half an epoch before its first -> name of the stage; its number if names would overlap."""
    parts = stages(records)
    named = len(parts) <= 2
    return {first - 0.5: name if named else str(number) for number, (name, first, _) in enumerate(parts, 1)}


def _losses(records: Sequence[JsonMapping], task: str, watching: str, marks: Mapping[float, str]) -> str:
    lines = [curve(records, "training", lambda r: r["loss"][task])]
    if any("validation" in record for record in records):
        lines.append(curve(records, watching, lambda r: r["validation"]["loss"][task]))
    return line_chart(f"{task}: loss", lines, marks=marks)


def _scores(
    records: Sequence[JsonMapping], task: str, metrics: JsonMapping, watching: str, marks: Mapping[float, str]
) -> list[str]:
    """One chart of the scores that are one number, one of the errors, and one for each score per class or group."""

    def line(name: str, *keys: str) -> Line:
        def find(record: JsonMapping) -> Any:
            found = record["validation"]["tasks"][task]
            for key in keys:
                found = found[key]
            return found

        return curve(records, name, find)

    charts = []
    plain = [name for name, value in metrics.items() if not isinstance(value, Mapping)]
    errors = [name for name in plain if direction_of(name) is False]  # in the target's unit, which the others have not
    for what, names in (("", [name for name in plain if name not in errors]), (" errors, less is better", errors)):
        if names:
            charts.append(score_chart(f"{task}: {watching}{what}", [line(label(name), name) for name in names], marks))
    for key, values in metrics.items():
        if not isinstance(values, Mapping):
            continue
        # Of class -> value, or of several scores of the same classes.
        deep = {name: one for name, one in values.items() if isinstance(one, Mapping)} or {"": values}
        for score, rows in deep.items():
            keys = [key, score] if score else [key]
            title = f"{task}: {watching}, {' '.join(keys).replace('_', ' ')}"
            charts.append(score_chart(title, [line(str(row), *keys, row) for row in rows], marks))
    return charts
