"""ROC curves of a task with classes: each class against the rest, from the probabilities in evaluation.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..utils.json_toml import JsonMapping
from ..utils.optional_imports import MissingExtra, require
from .charts import NUM_COLOURS, Line, line_chart
from .past_run import PastRun

_POINTS = 200  # per curve: more than a screen can show


def roc_section(run: PastRun, task: str, entries: Sequence[JsonMapping]) -> str:
    """The curves with their areas; if they cannot be computed, a line is added to the problems.

    Args:
        entries: of the task's images, each with its true "class".
    """
    entries = [entry for entry in entries if isinstance(entry.get("probabilities"), dict)]
    if not entries:
        return "<p class=soft>No ROC curve: this run's evaluation.jsonl is of a version without all probabilities.</p>"
    names = list(entries[0]["probabilities"])
    wanted = (
        names[1:] if len(names) == 2 else names
    )  # of two classes only the second, the finding; the curve of the other is its mirror image
    try:
        curves = {name: _curve(name, entries) for name in wanted}
    except (MissingExtra, KeyError, TypeError, ValueError) as error:
        run.problems.append(f"{task}: no ROC curve: {' '.join(str(error).split())}")
        return ""
    lines = {name: line for name, line in curves.items() if line is not None}
    absent = [name for name in wanted if name not in lines]
    note = "Each class against all others" if len(names) > 2 else f"{wanted[0]} against {names[0]}"
    note = f"{note}; the number is the area under the curve, 0.5 on the diagonal. " if lines else ""
    if absent:
        note += f"None for {', '.join(absent)}: a curve needs images that are of the class, and some that are not."
    drawn = list(lines.values())
    charts = [
        line_chart(f"{task}: ROC", drawn[first : first + NUM_COLOURS], high=1.0, across="1 - specificity", square=True)
        for first in range(0, len(drawn), NUM_COLOURS)
    ]
    grid = f"<div class=grid>{''.join(charts)}</div>" if charts else ""
    title = f"<h3>{escape(task)}: sensitivity and specificity at every threshold</h3>"
    return f"{title}<p class=soft>{escape(note.strip())}</p>{grid}"


def _curve(name: str, entries: Sequence[JsonMapping]) -> Line | None:
    """None if one side has no image."""
    sklearn = require("sklearn.metrics", "the ROC curves of a report")
    truth = [entry["class"] == name for entry in entries]
    if all(truth) or not any(truth):
        return None
    shares = [float(entry["probabilities"][name]) for entry in entries]
    wrong, right, _ = sklearn.roc_curve(truth, shares)
    places = _places(len(wrong))
    area = sklearn.roc_auc_score(truth, shares)
    return Line(name, [float(wrong[i]) for i in places], [float(right[i]) for i in places], said=f"{area:.3f}")


def _places(count: int) -> list[int]:
    """At most _POINTS of `count` indices, evenly spaced, with both ends."""
    if count <= _POINTS:
        return list(range(count))
    return [round(number * (count - 1) / (_POINTS - 1)) for number in range(_POINTS)]
