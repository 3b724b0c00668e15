"""`report.html` of one run: scores, tiles, classes, patients, curves, gradients, time, and what ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite
from typing import Any

from .analyses import feature_section, saliency_section
from .charts import duration, line_chart, number, shares
from .curves import curve, label, learning_section, look_up
from .gradients import gradient_section
from .images import class_facts, class_sections, patient_section, spread, tile_sections
from .past_run import PastRun
from .style import page

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
        saliency_section(run),
        feature_section(run),
        learning_section(run),
        gradient_section(run),
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


def what_ran(run: PastRun) -> dict[str, str]:
    """The data, the split, the recipe's choices, the machine and the commit, as far as they are known."""
    facts, environment, config = run.facts, run.environment, run.config
    rows = {
        "data": facts.get("data"),
        "split": facts.get("split"),
        "patients": None if run.by_tile else _counts(facts, "training_patients", "validation_patients"),
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
    of = ", split image by image: their patients may be in training too" if run.by_tile else f" of {patients} patients"
    what = f"{images} held-out images{of}" if images else "Held-out images, after the last epoch"
    last_stage = [one for one in run.records if one.get("stage") == run.records[-1].get("stage")]
    ranked = [(look_up(lambda r: r["validation"]["score"], one), -one["epoch"]) for one in last_stage]
    best = max(((score, epoch) for score, epoch in ranked if isfinite(score)), default=None)
    when, judged = "", run.summary.get("checkpoint")
    if judged == "last":
        when = ", with the weights of the last epoch"
    elif best and judged == "best":
        epochs = run.records[-1]["epoch"]
        when = f", with the weights of epoch {-best[1]} of {epochs}{', which scored best on them' * (epochs > 1)}"
    meanings = [_MEANINGS[name] for name in dict.fromkeys(name for _, name in scores) if name in _MEANINGS]
    notes = [*ranges, *spread(run), " ".join(meanings)]
    said = "".join(f"<p class=soft>{escape(note)}</p>" for note in notes)
    return f"<p>{escape(what + when)}.</p><div class=facts>{cards}</div>{warning}{said}"


def _time(records: Sequence[Mapping[str, Any]]) -> str:
    timed = [record for record in records if isfinite(look_up(lambda r: r["seconds"] * r["waiting"], record))]
    if not timed:
        return "<p class=soft>No times: this run's metrics.jsonl has none.</p>"
    waiting = sum(record["seconds"] * record["waiting"] for record in timed)
    steps = sum(record["seconds"] for record in timed) - waiting
    parts: dict[str, float] = {"waiting for data": waiting, "training steps": steps}
    validation = [look_up(lambda r: r["validation_seconds"], record) for record in timed]
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
