"""`report.html` of one run: scores, tiles, classes, patients, curves, gradients, time, settings and environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import isfinite, nan
from typing import Any

from ..utils.json_toml import JsonMapping
from ..utils.words import counted
from .analyses import feature_section, saliency_section
from .charts import duration, line_chart, shares
from .curves import curve, learning_section, look_up
from .gradients import gradient_section
from .images import class_facts, class_sections, patient_section, spread, tile_sections
from .notices import notice_section
from .past_run import UNEXPECTED, PastRun
from .scores import score_cards, uncertainty_note
from .sets import set_section
from .style import page

_MEANINGS = {
    "dice": "Dice: overlap of the predicted and the true area, mean over {}; 1 is perfect, 0 no overlap.",
    "jaccard": "Jaccard: the shared area divided by the area of both together, mean over {}.",
    "accuracy": "Accuracy: share of the images whose class is right.",
    "balanced_accuracy": "Balanced accuracy: mean over the classes of the share of their images that is found.",
    "mae": "MAE: mean absolute error, in the unit of the target; less is better.",
    "rmse": "RMSE: root of the mean squared error; less is better.",
    "r2": "R²: 1 is perfect, 0 no better than always predicting the mean of the targets, below 0 worse.",
}
_OVER = {"image": "images", "batch": "batches, their pixels taken together"}


def render(run: PastRun) -> str:
    """The page; missing files, and edited ones that prevent a section, are added to `run.problems`."""
    parts, errors = [], []
    for section in _SECTIONS:
        try:
            parts.append(section(run))
        except UNEXPECTED as error:
            parts.append("")
            errors.append(error)
    if errors:
        run.edited(errors[0])
    return page(run.name, parts, run.problems)


def primary_scores(run: PastRun) -> dict[tuple[str, str], float]:
    """(task, metric) -> value, for metrics that are one number; NaN if undefined."""
    return _numbers(run.scores)


def _numbers(tasks: Mapping[str, JsonMapping]) -> dict[tuple[str, str], float]:
    return {
        (task, name): nan if value is None else value
        for task, metrics in tasks.items()
        for name, value in metrics.items()
        if value is None or (isinstance(value, float | int) and not isinstance(value, bool))
    }


def what_ran(run: PastRun) -> dict[str, str]:
    """Data, split, recipe settings, machine and commit, as far as known."""
    facts, environment, config = run.facts, run.environment, run.config
    rows = {
        "data": facts.get("data"),
        "split": facts.get("split"),
        "epoch chosen by": run.summary.get("chosen_by"),
        f"{run.unit}s": None if run.by_tile else _counts(facts, "training_patients", "validation_patients"),
        "images": _counts(facts, "training_images", "validation_images"),
        "sets" if "sets" in facts else "classes": ", ".join(facts.get("class_names", [])),
        **{f"classes of {column}": ", ".join(names) for column, names in facts.get("classes", {}).items()},
        "model": _options(config.get("model")),
        "balancer": _options(config.get("balancer")),
        "optimizer": _options(config.get("optimizer")),
        "precision": facts.get("precision") or config.get("training", {}).get("precision"),
        "device": device(run),
        "started": environment.get("started"),
        "continued": _continued(run),
        "fastmtl": f"{environment['fastmtl']}, commit {(environment.get('commit') or 'unknown')[:12]}"
        if "fastmtl" in environment
        else None,
        "torch": environment.get("packages", {}).get("torch"),
        "command": environment.get("command"),
    }
    return {key: str(value) for key, value in rows.items() if value}


def _continued(run: PastRun) -> str:
    """After which steps the run was continued, and what changed."""
    continuations = []
    for record in run.resumes:
        changes = ", ".join(f"{key} {before} -> {now}" for key, (before, now) in record["changes"].items())
        continuations.append(f"after step {record['step']}{f' ({changes})' * bool(changes)}")
    return ", ".join(continuations)


def device(run: PastRun) -> str:
    """The name of the GPU (of all GPUs if the run does not say which), or the processor and its threads."""
    environment = run.environment
    if not environment:
        return ""
    threads = environment.get("threads")
    threads = counted(threads, "thread") if isinstance(threads, int) else "unknown threads"
    processor = f"{environment.get('processor', 'CPU')}, {threads}"
    kind, _, number = str(run.facts.get("device") or run.config.get("training", {}).get("device", "")).partition(":")
    if kind == "cpu":
        return processor
    gpus = environment.get("gpus", [])
    return ", ".join(gpus[int(number) :][:1] if number.isdecimal() else gpus) or processor


def _head(run: PastRun) -> str:
    summary = str(run.config.get("summary", ""))
    recipe = f"<p class=soft>Recipe: {escape(summary)}</p>" if summary else ""
    return f"<h1>{escape(run.name)}</h1>{recipe}{_primary_scores(run)}"


def _primary_scores(run: PastRun) -> str:
    scores = primary_scores(run)
    if not scores:
        return "<p>This run has no scores on held-out images.</p>"
    missed, ranges = class_facts(run)
    warning = f"<p class=warn>{'<br>'.join(map(escape, missed))}</p>" if missed else ""
    images, patients = run.summary.get("num_images"), run.summary.get("num_patients")
    of = f" of {counted(patients, run.unit)}" if isinstance(patients, int) else ""
    of = ", split image by image: their patients may be in training too" if run.by_tile else of
    what = f"{counted(images, 'held-out image')}{of}" if images else "Held-out images, after the last epoch"
    last_stage = [one for one in run.records if one.get("stage") == run.records[-1].get("stage")]
    by_loss = run.config.get("training", {}).get("monitor") == "loss"
    ranked = [(_monitored(one, by_loss), -one["epoch"]) for one in last_stage]
    best = max(((score, epoch) for score, epoch in ranked if isfinite(score)), default=None)
    when, judged = "", run.summary.get("checkpoint")
    averaged = f", averaged ({way})" if (way := run.config.get("training", {}).get("average")) else ""
    if judged == "last":
        when = f", with the weights of the last epoch{averaged}"
    elif best and judged == "best":
        epochs, on = run.records[-1]["epoch"], "them" if run.watching == "held out" else "the inner share"
        best_by = "had the lowest loss" if by_loss else "scored best"
        chosen = f", which {best_by} on {on}" if len(last_stage) > 1 else ""
        when = f", with the weights of epoch {-best[1]} of {epochs}{chosen}{averaged}"
    over = run.summary.get("patients", {})
    notes = [uncertainty_note(over, scores), *ranges, *spread(run), " ".join(_meanings(run, scores))]
    said = "".join(f"<p class=soft>{escape(note)}</p>" for note in notes if note)
    return f"<p>{escape(what + when)}.</p>{score_cards(scores, over)}{warning}{said}{_test(run)}"


def _monitored(record: JsonMapping, by_loss: bool) -> float:
    """The number that chose the epoch, larger is better."""
    if by_loss:
        return -look_up(lambda r: r["validation"]["weighted_loss"], record)
    return look_up(lambda r: r["validation"]["score"], record)


def _test(run: PastRun) -> str:
    """The scores on the test images; "" if there are none."""
    test = run.summary.get("test", {})
    scores = _numbers(test.get("tasks", {}))
    if not scores:
        return ""
    patients = f" of {counted(test['num_patients'], run.unit)}" if "num_patients" in test and not run.by_tile else ""
    images = counted(test["num_images"], "test image") if "num_images" in test else "The test images"
    cards = score_cards(scores, test.get("patients", {}))
    return f"<p>{escape(images + patients)}, not used for any selection.</p>{cards}"


def _meanings(run: PastRun, scores: Mapping[tuple[str, str], float]) -> list[str]:
    """A sentence for each known metric on the cards; metrics of custom tasks have none."""
    tasks: dict[str, list[str]] = {}
    for task, metric in scores:
        tasks.setdefault(metric, []).append(task)
    said = []
    for metric, of in tasks.items():
        ways = [run.options(task).get("aggregate", "image") for task in of]
        over = {way.get(metric, "image") if isinstance(way, Mapping) else way for way in ways}
        words = [_OVER.get(str(one), str(one)) for one in sorted(map(str, over))]
        said.append(_MEANINGS.get(metric, "").format(" or ".join(words)))
    return [one for one in said if one]


def _time_section(run: PastRun) -> str:
    return f"<h2>Where the time went</h2>{_time(run.records)}"


def _time(records: Sequence[JsonMapping]) -> str:
    timed = [record for record in records if isfinite(look_up(lambda r: r["seconds"] * r["waiting"], record))]
    if not timed:
        return "<p class=soft>No times: this run's metrics.jsonl has none.</p>"
    waiting = sum(record["seconds"] * record["waiting"] for record in timed)
    steps = sum(record["seconds"] for record in timed) - waiting
    parts: dict[str, float] = {"waiting for data": waiting} | _phases(timed, steps)
    validation = [look_up(lambda r: r["validation_seconds"], record) for record in timed]
    measured = [seconds for seconds in validation if isfinite(seconds)]
    if measured:
        parts["validation"] = sum(measured)
    speed = line_chart("Training speed, images per second", [curve(timed, "speed", lambda r: r["images_per_second"])])
    missing = "" if measured else " Validation was not timed."
    note = f"{duration(sum(parts.values()))} in {counted(len(timed), 'epoch')}, without saving checkpoints.{missing}"
    return f"<p class=soft>{note}</p>{shares(parts)}<div class=grid>{speed}</div>"


def _phases(records: Sequence[JsonMapping], steps: float) -> dict[str, float]:
    """The seconds of all steps by phase; runs of earlier versions did not time the phases."""
    seconds: dict[str, float] = {}
    for record in records:
        shares = record.get("time")
        if not isinstance(shares, Mapping) or not shares:
            return {"training steps": steps}
        for name in shares:
            if name != "loader":
                share = look_up(lambda r, name=name: r["time"][name] * r["seconds"], record)
                seconds[str(name)] = seconds.get(str(name), 0.0) + (share if isfinite(share) else 0.0)
    total = sum(seconds.values()) or 1.0
    return {name: steps * spent / total for name, spent in seconds.items()}


def _what_ran_section(run: PastRun) -> str:
    rows = what_ran(run).items()
    cells = "".join(f"<tr><th scope=row>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in rows)
    recipe = f"<summary>the recipe, every option</summary><pre>{escape(run.config_text)}</pre>"
    return f"<h2>What ran</h2><table class=what>{cells}</table><details class=recipe>{recipe}</details>"


def _counts(facts: JsonMapping, training: str, validation: str) -> str:
    """Both counts in words; "" if a run of another version lacks them."""
    if training not in facts or validation not in facts:
        return ""
    first, second = (found if isinstance(found, int) else len(found) for found in (facts[training], facts[validation]))
    return f"{first} to train, {second} held out"


def _options(table: Any) -> str:
    if not isinstance(table, Mapping):
        return ""
    return ", ".join(str(value) if key == "name" else f"{key} {value}" for key, value in table.items())


_SECTIONS: tuple[Callable[[PastRun], str], ...] = (
    _head,
    notice_section,
    set_section,
    tile_sections,
    class_sections,
    patient_section,
    saliency_section,
    feature_section,
    learning_section,
    gradient_section,
    _time_section,
    _what_ran_section,
)
