"""A page that compares runs: scores side by side, overlaid curves, and differences of the recipes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import isfinite, nan
from typing import Any

from ..utils.json_toml import JsonMapping
from ..utils.words import counted
from .charts import UNKNOWN, duration, line_chart, number
from .curves import curve, label, score_chart
from .images import table
from .page import device, primary_scores, what_ran
from .past_run import UNEXPECTED, PastRun
from .style import page

# Options of a task that define its scores: runs compare only if these are equal.
_SCORED_BY = ("column", "size", "structures", "empty", "aggregate", "include_background", "ignore_index")


def render_comparison(runs: Sequence[PastRun]) -> str:
    """The page. Runs are named by their folders, by the full path if two names are equal; runs with edited files that
    cannot be shown are omitted, with a line in their problems."""
    shown = [run for run in runs if _can_be_shown(run)]
    names = _names(shown)
    return page("Comparison of " + ", ".join(names), _parts(names, shown), [p for run in runs for p in run.problems])


def _can_be_shown(run: PastRun) -> bool:
    try:
        return bool(_parts(["", ""], [run, run]))
    except UNEXPECTED as error:
        run.edited(error)
        return False


def _parts(names: Sequence[str], runs: Sequence[PastRun]) -> list[str]:
    caution, comparable = _caution(runs)
    return [
        f"<h1>Comparison of {counted(len(runs), 'run')}</h1>{caution}",
        f"<h2>Scores on the held-out images</h2>{_scores(names, runs, comparable)}",
        f"<h2>Learning curves</h2>{_curves(names, runs)}",
        f"<h2>Where the recipes differ</h2>{_differences(names, runs)}",
        f"<h2>What ran</h2>{_facts(names, runs)}",
    ]


def _names(runs: Sequence[PastRun]) -> list[str]:
    counts = Counter(run.folder.resolve().name for run in runs)
    return [
        run.folder.resolve().name if counts[run.folder.resolve().name] == 1 else str(run.folder.resolve())
        for run in runs
    ]


def _caution(runs: Sequence[PastRun]) -> tuple[str, bool]:
    """A note on whether the runs were evaluated on the same images, and whether their scores are comparable."""
    if len(runs) < 2:
        return "<p class=warn>The other runs could not be read: there is nothing to compare.</p>", False
    if any("validation_patients" not in run.facts for run in runs):
        return "<p class=warn>Not every run says which patients it held out: the scores may not compare.</p>", False
    if _differ(tuple(sorted(run.facts["validation_patients"])) for run in runs):
        said = "These runs held out different patients: their scores are not on the same images."
    elif _differ(run.facts.get("data") for run in runs):
        said = "These runs read different data: patients of one name need not be the same, nor their images."
    elif _differ(tuple(sorted(run.held_out)) for run in runs if run.held_out) or _differ(_num_images(runs)):
        said = "These runs held out the same patients, but not the same images of them."
    else:
        return f"<p class=soft>All runs held out the same {'images' if runs[0].by_tile else 'patients'}.</p>", True
    return f"<p class=warn>{said}</p>", False


def _num_images(runs: Sequence[PastRun]) -> list[int]:
    """The number of held-out images of each run, if known."""
    counts = [run.summary.get("num_images", run.facts.get("validation_images")) for run in runs]
    return [count for count in counts if count is not None]


def _differ(values: Iterable[Any]) -> bool:
    return len(set(values)) > 1


def _scores(names: Sequence[str], runs: Sequence[PastRun], comparable: bool) -> str:
    scores = [primary_scores(run) for run in runs]
    keys = list(dict.fromkeys(key for one in scores for key in one))
    ways = {key: _direction(runs, *key) for key in keys}
    titles = [f"{task}: {label(metric)}{', less is better' * (ways[task, metric] is False)}" for task, metric in keys]
    heads = ["Run", "Recipe", *titles, "Epochs", "Images/s", "Training time", "Device"]
    rows = []
    best: list[tuple[int, int]] = []
    for column, key in enumerate(keys if comparable else [], 2):
        best += [(row, column) for row in _best([one.get(key, nan) for one in scores], ways[key])]
    for name, run, one in zip(names, runs, scores, strict=True):
        epochs = [record for record in run.records if "seconds" in record and "images_per_second" in record]
        seconds = sum(record["seconds"] for record in epochs)
        images = sum(record["seconds"] * record["images_per_second"] for record in epochs)
        rows.append(
            [
                name,
                run.name,
                *(number(one.get(key)) for key in keys),
                str(len(run.records)) if run.records else UNKNOWN,
                f"{images / seconds:.0f}" if seconds else UNKNOWN,
                duration(seconds) if seconds else UNKNOWN,
                device(run) or UNKNOWN,
            ]
        )
    said = (
        "<p class=soft>The best of each score is bold, where all runs define and compute it alike.</p>" if best else ""
    )
    return said + table(heads, rows, best)


def _direction(runs: Sequence[PastRun], task: str, metric: str) -> bool | None:
    """Whether more is better; None if that is unknown, or the runs with this task score it differently."""
    having = [run for run in runs if metric in run.scores.get(task, {})]
    if _differ(tuple(repr(run.options(task).get(option)) for option in _SCORED_BY) for run in having):
        return None
    ways = {run.higher_is_better(task, metric) for run in having}
    return ways.pop() if len(ways) == 1 else None


def _best(values: Sequence[float], higher_is_better: bool | None) -> list[int]:
    """Indices of the best value and of those printed the same; empty if all are equal or there is only one."""
    known = [value for value in values if isfinite(value)]
    if higher_is_better is None or len({number(value) for value in known}) < 2:
        return []
    top = number(max(known) if higher_is_better else min(known))
    return [place for place, value in enumerate(values) if isfinite(value) and number(value) == top]


def _curves(names: Sequence[str], runs: Sequence[PastRun]) -> str:
    """One chart per task and loss, and per task and metric; a run has the same colour in all."""
    figures = []
    for task in dict.fromkeys(task for run in runs for record in run.records for task in record["loss"]):
        lines = [
            curve(run.records, name, lambda r, task=task: r["validation"]["loss"][task])
            for name, run in zip(names, runs, strict=True)
        ]
        figures.append(line_chart(f"{task}: validation loss", lines))
    for task, metric in dict.fromkeys(key for run in runs for key in primary_scores(run)):
        lines = [
            curve(run.records, name, lambda r, task=task, metric=metric: r["validation"]["tasks"][task][metric])
            for name, run in zip(names, runs, strict=True)
        ]
        figures.append(score_chart(f"{task}: {label(metric)}", lines))
    return f"<div class=grid>{''.join(figures)}</div>" if figures else "<p class=soft>No run has any epochs.</p>"


def _differences(names: Sequence[str], runs: Sequence[PastRun]) -> str:
    flat = [_flatten(run.config) for run in runs]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if len({one.get(key) for one in flat}) > 1]
    keys = [key for key in keys if key not in ("name", "summary")]
    if not all(flat):
        return "<p class=soft>Unknown: the recipe of a run cannot be read.</p>"
    if not keys:
        same = "Nowhere: every option is the same." if len(runs) > 1 else "There is only one recipe."
        return f"<p class=soft>{same}</p>"
    return _side_by_side(names, keys, flat)


def _facts(names: Sequence[str], runs: Sequence[PastRun]) -> str:
    """Data, machine and commit of each run; the choices of the recipes are in the table of differences."""
    found = [what_ran(run) for run in runs]
    if any(run.notices for run in runs):
        for run, one in zip(runs, found, strict=True):
            one["notices"] = f"{len(run.notices)}, on its own report" if run.notices else "none"
    keys = dict.fromkeys(key for one in found for key in one if key not in ("model", "balancer", "optimizer"))
    return _side_by_side(names, list(keys), found)


def _side_by_side(names: Sequence[str], keys: Sequence[str], columns: Sequence[Mapping[str, str]]) -> str:
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in ["", *names])
    rows = []
    for key in keys:
        cells = "".join(f"<td>{escape(one.get(key, UNKNOWN))}</td>" for one in columns)
        rows.append(f"<tr><th scope=row>{escape(key)}</th>{cells}</tr>")
    return f"<div class=wide><table class=beside><tr class=head>{head}</tr>{''.join(rows)}</table></div>"


def _flatten(config: JsonMapping, prefix: str = "") -> dict[str, str]:
    """Nested tables as dotted keys.

    >>> _flatten({"training": {"epochs": 3}})
    {'training.epochs': '3'}
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return flat
