"""Gradient statistics over training: cosines, norms, and the balancer's task weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import combinations
from math import isfinite, nan
from typing import Any

from ..utils.json_toml import JsonMapping
from ..utils.words import counted, listed
from .charts import Line, line_chart
from .curves import look_up, step_marks
from .past_run import PastRun

_PAIRS = 6  # lines that can be distinguished in one chart
_MOST_PAIRS = 24  # beyond this only the most opposed pair is drawn


def gradient_section(run: PastRun) -> str:
    """Cosines of every pair, norms and weights, if the balancer recorded them."""
    return f"<h2>Agreement of the task gradients</h2>{_gradients(run)}"


def _gradients(run: PastRun) -> str:
    if not run.looks:
        return "<p class=soft>No record of the gradients: this run has no balance.jsonl.</p>"
    looks, tasks = run.looks, list(dict.fromkeys(task for look in run.looks for task in look["loss"]))
    steps = [look["step"] for look in looks]

    def line(name: str, find: Callable[[JsonMapping], Any]) -> Line:
        return Line(name, steps, [look_up(find, look) for look in looks])

    pairs = [
        line(f"{a} and {b}", lambda look, a=a, b=b: look["cosines"][_place(look, a)][_place(look, b)])
        for a, b in combinations(tasks, 2)
    ]
    lowest = [min(filter(isfinite, ys), default=nan) for ys in zip(*(pair.ys for pair in pairs), strict=True)]
    measured = [value for value in lowest if isfinite(value)]
    if len(pairs) > _MOST_PAIRS:
        pairs = [Line(f"the most opposed of {len(pairs)} pairs", steps, lowest)]
    weights = [line(task, lambda look, task=task: look["weights"][_place(look, task)]) for task in tasks]
    norms = [line(task, lambda look, task=task: look["norms"][_place(look, task)]) for task in tasks]
    marks = step_marks(run.records)
    whole = line("all parameters", lambda look: look["gradient_norm"])
    groups = [pairs[first : first + _PAIRS] for first in range(0, len(pairs), _PAIRS)]
    charts = [
        *(("Cosine between the tasks' gradients", group, {"low": -1.0, "high": 1.0}) for group in groups),
        ("Norm of each task's gradient", norms, {}),
        ("Weight of each task in the update", weights, {}),
        ("Norm of the whole gradient, before clipping", [whole], {}),
    ]
    figures = [
        line_chart(title, [_known(one) for one in lines], across="step", marks=marks, **scale)
        for title, lines, scale in charts
        if any(isfinite(y) for one in lines for y in one.ys)
    ]
    said = escape(_said(run, measured, alone=not pairs or all(len(look["loss"]) < 2 for look in looks)))
    return f"<p class=soft>{said}</p><div class=grid>{''.join(figures)}</div>"


def _said(run: PastRun, lowest: Sequence[float], *, alone: bool) -> str:
    """How often two tasks were opposed, from the lowest cosine of each step; or why this is unknown."""
    if lowest:
        names = _balancers(run)
        under = f", under the balancer{'s' * (len(names) > 1)} {listed(names)}" if names else ""
        opposed = sum(value < 0 for value in lowest) or "none"
        return (
            f"On the shared parameters{under}. Below 0 two tasks pull in opposite directions: so at {opposed} of the "
            f"{counted(len(lowest), 'step')} looked at."
        )
    if alone:
        return "One task at a time: there are no gradients to compare."
    if any("cosines" in look for look in run.looks):
        return "The recorded cosines are NaN: a task's gradient was 0 or not finite at every recorded step."
    return (
        "The balancer of this run weighs losses; it does not compute each task's gradient. --gradient-stats-every 100 "
        "does, at every hundredth step."
    )


def _balancers(run: PastRun) -> list[str]:
    """The names of the recipe's balancer and of the stages' own balancers."""
    stages = run.config.get("stages") or [{}]
    own = run.config.get("balancer", {})
    used = [stage.get("balancer") or own for stage in stages]
    return list(dict.fromkeys(str(one["name"]) for one in used if "name" in one))


def _place(look: JsonMapping, task: str) -> int:
    """The index of a task in its stage; ValueError if it is not one of its tasks."""
    return list(look["loss"]).index(task)


def _known(line: Line) -> Line:
    """The line without steps that have no value."""
    known = [(x, y) for x, y in zip(line.xs, line.ys, strict=True) if isfinite(y)]
    return Line(line.name, [x for x, _ in known], [y for _, y in known], line.said)
