"""`report.html` of one run: scores, tiles, classes, patients, curves, gradients, time, and what ran."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import combinations
from math import isfinite, nan
from typing import Any

from .charts import Line, duration, line_chart, number, shares
from .images import class_facts, class_sections, patient_section, spread, tile_sections
from .past_run import PastRun
from .style import page

_MOST_PAIRS = 6  # lines that one chart of cosines still shows apart
_MEANINGS = {
    "dice": "Dice: overlap of the predicted and the true area, mean over images; 1 is perfect, 0 no overlap.",
    "jaccard": "Jaccard: the shared area divided by the area of both together, mean over images.",
    "accuracy": "Accuracy: share of the images whose class is right.",
}


def render(run: PastRun) -> str:
    """The page. What cannot be shown is said in its place; pictures that are gone are added to `run.problems`."""
    parts = [
        f"<h1>{escape(run.name)}</h1><p class=soft>{escape(str(run.config.get('summary', '')))}</p>" + _headlines(run),
        tile_sections(run),
        class_sections(run),
        patient_section(run),
        f"<h2>Learning curves</h2>{_curves(run.records)}",
        f"<h2>How the tasks' gradients got along</h2>{_gradients(run)}",
        f"<h2>Where the time went</h2>{_time(run.records)}",
        f"<h2>What ran</h2>{_what_ran(run)}",
        "<details class=recipe><summary>the recipe, every option</summary>"
        f"<pre>{escape(run.config_text)}</pre></details>",
    ]
    return page(run.name, parts, run.problems)


def headline_scores(run: PastRun) -> dict[tuple[str, str], float]:
    """(task, metric) -> value, for the metrics that are one number."""
    return {
        (task, name): value
        for task, metrics in run.scores.items()
        for name, value in metrics.items()
        if isinstance(value, float | int)
    }


def curve(records: Sequence[Mapping[str, Any]], name: str, find: Callable[[Mapping[str, Any]], Any]) -> Line:
    """A line over the epochs; where `find` finds nothing, or no number, it has a gap."""
    return Line(name, [record["epoch"] for record in records], [_look_up(find, record) for record in records])


def label(metric: str) -> str:
    """A metric's name as a person writes it.

    >>> label("per_class")
    'Per class'
    """
    return metric.replace("_", " ").capitalize()


def what_ran(run: PastRun) -> dict[str, str]:
    """The data, the split, the recipe's choices, the machine and the commit, as far as they are known."""
    facts, environment, config = run.facts, run.environment, run.config
    rows = {
        "data": facts.get("data"),
        "split": facts.get("split"),
        "patients": _counts(facts, "training_patients", "validation_patients"),
        "images": _counts(facts, "training_images", "validation_images"),
        "classes": ", ".join(facts.get("class_names", [])),
        "model": _options(config.get("model")),
        "balancer": _options(config.get("balancer")),
        "optimizer": _options(config.get("optimizer")),
        "precision": facts.get("precision") or config.get("training", {}).get("precision"),
        "device": device(run),
        "started": environment.get("started"),
        "fastmtl": f"{environment['fastmtl']}, commit {(environment.get('commit') or 'unknown')[:12]}"
        if "fastmtl" in environment
        else None,
        "torch": environment.get("packages", {}).get("torch"),
        "command": environment.get("command"),
    }
    return {key: str(value) for key, value in rows.items() if value}


def device(run: PastRun) -> str:
    """The GPUs' names, or the processor's and its threads."""
    environment = run.environment
    if not environment:
        return ""
    processor = f"{environment.get('processor', 'CPU')}, {environment.get('threads', 'unknown')} threads"
    return ", ".join(environment.get("gpus", [])) or processor


def _headlines(run: PastRun) -> str:
    scores = headline_scores(run)
    if not scores:
        return "<p>This run has no scores on held-out images.</p>"
    cards = "".join(
        f"<div class=fact><span>{escape(task)}: {escape(label(name))}</span><b>{number(value)}</b></div>"
        for (task, name), value in scores.items()
    )
    missed, ranges = class_facts(run)
    warning = f"<p class=warn>{'<br>'.join(map(escape, missed))}</p>" if missed else ""
    images, patients = run.summary.get("num_images"), run.summary.get("num_patients")
    what = f"{images} held-out images of {patients} patients" if images else "Held-out images, after the last epoch"
    last_stage = [one for one in run.records if one.get("stage") == run.records[-1].get("stage")]
    ranked = [(_look_up(lambda r: r["validation"]["score"], one), -one["epoch"]) for one in last_stage]
    best = max(((score, epoch) for score, epoch in ranked if isfinite(score)), default=None)
    when = ""
    if best and run.summary.get("checkpoint") == "best":
        epochs = run.records[-1]["epoch"]
        when = f", with the weights of epoch {-best[1]} of {epochs}{', which scored best on them' * (epochs > 1)}"
    meanings = [_MEANINGS[name] for name in dict.fromkeys(name for _, name in scores) if name in _MEANINGS]
    notes = [*ranges, *spread(run), " ".join(meanings)]
    said = "".join(f"<p class=soft>{escape(note)}</p>" for note in notes)
    return f"<p>{escape(what + when)}.</p><div class=facts>{cards}</div>{warning}{said}"


def _curves(records: Sequence[Mapping[str, Any]]) -> str:
    if not records:
        return "<p class=soft>No curves: this run's metrics.jsonl has no epochs.</p>"
    held_out = any("validation" in record for record in records)
    figures = []
    for task in dict.fromkeys(task for record in records for task in record["loss"]):
        lines = [curve(records, "training", lambda r, task=task: r["loss"][task])]
        if held_out:
            lines.append(curve(records, "held out", lambda r, task=task: r["validation"]["loss"][task]))
        figures.append(line_chart(f"{task}: loss", lines))
    last: dict[str, Any] = {}  # of each task the last epoch that judged it
    for record in records:
        last |= record.get("validation", {}).get("tasks", {})
    for task, metrics in last.items():
        plain = [name for name, value in metrics.items() if not isinstance(value, Mapping)]
        lines = [
            curve(records, label(name), lambda r, task=task, name=name: r["validation"]["tasks"][task][name])
            for name in plain
        ]
        if lines:
            figures.append(_score_chart(f"{task}: held out", lines))
        for key in metrics.keys() - set(plain):
            lines = [
                curve(records, row, lambda r, row=row, task=task, key=key: r["validation"]["tasks"][task][key][row])
                for row in metrics[key]
            ]
            figures.append(_score_chart(f"{task}: held out, {key.replace('_', ' ')}", lines))
    note = "<p class=soft>The numbers beside the names are the last epoch's.</p>"
    if parts := stages(records):
        said = "; ".join(f"{name}: epochs {first} to {last}" for name, first, last in parts)
        note += f"<p class=soft>Stages, each of its own tasks: {escape(said)}.</p>"
    return f"{note}<div class=grid>{''.join(figures)}</div>"


def stages(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    """Name, first and last epoch of each stage; nothing for a run without stages."""
    epochs: dict[str, list[int]] = {}
    for record in records:
        if "stage" in record:
            epochs.setdefault(str(record["stage"]), []).append(record["epoch"])
    return [(name, min(found), max(found)) for name, found in epochs.items()]


def _score_chart(title: str, lines: Sequence[Line]) -> str:
    """Scores between 0 and 1 are drawn on the whole of that range."""
    shares = all(0 <= y <= 1 for line in lines for y in line.ys if isfinite(y))
    return line_chart(title, lines, high=1.0 if shares else None)


def _gradients(run: PastRun) -> str:
    if not run.looks:
        return "<p class=soft>No record of the gradients: this run has no balance.jsonl.</p>"
    looks, tasks = run.looks, list(dict.fromkeys(task for look in run.looks for task in look["loss"]))
    steps = [look["step"] for look in looks]

    def line(name: str, find: Callable[[Mapping[str, Any]], Any]) -> Line:
        return Line(name, steps, [_look_up(find, look) for look in looks])

    pairs = [
        line(f"{a} and {b}", lambda look, a=a, b=b: look["cosines"][_place(look, a)][_place(look, b)])
        for a, b in combinations(tasks, 2)
    ]
    measured = [
        [y for y in values if isfinite(y)] for values in zip(*(pair.ys for pair in pairs), strict=True) if pairs
    ]
    measured = [values for values in measured if values]
    if len(pairs) > _MOST_PAIRS:
        lowest = [min((y for y in ys if isfinite(y)), default=nan) for ys in zip(*(p.ys for p in pairs), strict=True)]
        pairs = [Line(f"the most opposed of {len(pairs)} pairs", steps, lowest)]
    weights = [line(task, lambda look, task=task: look["weights"][_place(look, task)]) for task in tasks]
    norms = [line(task, lambda look, task=task: look["norms"][_place(look, task)]) for task in tasks]
    whole = line("all parameters", lambda look: look["gradient_norm"])
    charts = [
        ("Cosine between the tasks' gradients", pairs, {"low": -1.0, "high": 1.0}),
        ("Norm of each task's gradient", norms, {}),
        ("Weight of each task in the update", weights, {}),
        ("Norm of the whole gradient, before clipping", [whole], {}),
    ]
    figures = [
        line_chart(title, lines, across="step", **scale)
        for title, lines, scale in charts
        if any(isfinite(y) for one in lines for y in one.ys)
    ]
    if measured:
        opposed = sum(min(values) < 0 for values in measured)
        said = (
            "On the shared parameters. Below 0 two tasks pull in opposite directions, which the balancer "
            f"{run.config.get('balancer', {}).get('name', '')} settles: so at {opposed} of the "
            f"{len(measured)} steps looked at."
        )
    else:
        said = "The balancer of this run weighs losses; it does not look at each task's gradient."
    return f"<p class=soft>{escape(said)}</p><div class=grid>{''.join(figures)}</div>"


def _place(look: Mapping[str, Any], task: str) -> int:
    """Of a task among those of its stage; ValueError where it was not one of them."""
    return list(look["loss"]).index(task)


def _time(records: Sequence[Mapping[str, Any]]) -> str:
    timed = [record for record in records if isfinite(_look_up(lambda r: r["seconds"] * r["waiting"], record))]
    if not timed:
        return "<p class=soft>No times: this run's metrics.jsonl has none.</p>"
    waiting = sum(record["seconds"] * record["waiting"] for record in timed)
    steps = sum(record["seconds"] for record in timed) - waiting
    parts: dict[str, float] = {"waiting for data": waiting, "training steps": steps}
    validation = [_look_up(lambda r: r["validation_seconds"], record) for record in timed]
    measured = [seconds for seconds in validation if isfinite(seconds)]
    if measured:
        parts["validation"] = sum(measured)
    speed = line_chart("Training speed, images per second", [curve(timed, "speed", lambda r: r["images_per_second"])])
    missing = "" if measured else " Validation was not timed."
    note = f"{duration(sum(parts.values()))} in {len(timed)} epochs, without saving checkpoints.{missing}"
    return f"<p class=soft>{note}</p>{shares(parts)}<div class=grid>{speed}</div>"


def _what_ran(run: PastRun) -> str:
    rows = what_ran(run).items()
    cells = "".join(f"<tr><th scope=row>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in rows)
    return f"<table class=what>{cells}</table>"


def _counts(facts: Mapping[str, Any], training: str, validation: str) -> str:
    """Both counts in words; empty where a run of another version has them not."""
    if training not in facts or validation not in facts:
        return ""
    first, second = (found if isinstance(found, int) else len(found) for found in (facts[training], facts[validation]))
    return f"{first} to train, {second} held out"


def _options(table: Any) -> str:
    if not isinstance(table, Mapping):
        return ""
    return ", ".join(str(value) if key == "name" else f"{key} {value}" for key, value in table.items())


def _look_up(find: Callable[[Mapping[str, Any]], Any], record: Mapping[str, Any]) -> float:
    """A number of a record; NaN where it is not there, as in files of other versions."""
    try:
        return float(find(record))
    except (KeyError, IndexError, TypeError, ValueError):
        return nan
