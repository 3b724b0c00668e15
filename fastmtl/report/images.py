"""Results of single images: the best and worst, per class and per patient. From evaluation.jsonl."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from math import nan
from typing import Any

from ..utils.json_toml import JsonMapping
from ..utils.words import counted, percent
from .charts import UNKNOWN, confusion_matrix, mean, number
from .past_run import PastRun
from .pictures import picture
from .roc import roc_section

_ROWS_SHOWN = 10
# The colours of `evaluation.per_image`: those of the pictures, in light and dark mode alike.
_LEGEND = (
    '<ul class=legend><li><span class=outline style="border-color:#40c4ff"></span>true outline</li>'
    '<li><span class="outline dashed" style="border-color:#ffd600"></span>predicted outline</li></ul>'
)


def tile_sections(run: PastRun) -> str:
    """The best and worst tiles of every task with thumbnails; missing files are added to the problems."""
    parts = ["<h2>Tiles to look at</h2>"]
    for task in task_names(run.images):
        lines = [line for line in run.images if "thumbnail" in line["tasks"].get(task, {})]
        if any("class" not in line["tasks"][task] for line in lines):
            for title, shown in _groups(lines, task):
                parts.append(f"<h3>{escape(task)}: the {title}</h3>{_LEGEND}{_tiles(run, task, shown)}")
        elif lines:
            lines.sort(key=lambda line: -line["tasks"][task]["probability"])
            parts.append(f"<h3>{escape(task)}: the most confident mistakes</h3>{_tiles(run, task, lines)}")
    if len(parts) == 1:
        why = "none of the tasks has masks or boxes to draw, or took an image for another class"
        parts.append(f"<p class=soft>No tiles: {why}.</p>" if run.images else _absent(run, "tiles"))
    return "".join(parts)


def class_sections(run: PastRun) -> str:
    """A table and a confusion matrix for every task with classes; without images the values of the summary."""
    parts = ["<h2>Per class</h2>"]
    names = _tasks_with(run, "class")
    for task in names:
        lines = [line for line in run.images if "class" in line["tasks"].get(task, {})]
        found = Counter((line["tasks"][task]["class"], line["tasks"][task]["predicted"]) for line in lines)
        classes = _class_names(run, task)
        parts.append(f"<h3>{escape(task)}</h3>{_class_table(run, task, lines, classes, found)}")
        parts.append(f"<h3>{escape(task)}: true and predicted classes</h3>")
        parts.append("<p class=soft>Images; the shade is the share of the true class, the frame marks agreement.</p>")
        parts.append(confusion_matrix(classes, found))
        parts.append(roc_section(run, task, [line["tasks"][task] for line in lines]))
    if not names:
        parts += _summary_tables(run) or ["<p class=soft>No task of this run has values per class.</p>"]
        if not run.images:
            parts.append(_absent(run, "confusion matrix"))
    return "".join(parts)


def patient_section(run: PastRun) -> str:
    """One row per patient (or group of the split); the worst first, if the images have scores."""
    if not run.images:
        return f"<h2>Per {run.unit}</h2>{_absent(run, f'table of {run.unit}s')}"
    if run.by_tile:
        return ""  # their patients are unknown
    patients: dict[str, list[JsonMapping]] = defaultdict(list)
    for line in run.images:
        patients[str(line.get("patient", "unknown"))].append(line)
    maps, kinds = _tasks_with(run, "dice"), _tasks_with(run, "class")
    heads, rows = [run.unit.capitalize(), "Images"], []
    for task in maps:
        heads += [_titled(task, maps, "mean Dice"), "lowest"]
    heads += [_titled(task, kinds, "right class") for task in kinds]
    for patient, lines in patients.items():
        cells, merits = [str(len(lines))], []
        for task in maps:
            dice = _entries(lines, task, "dice")
            cells += [number(mean(dice)), number(min(dice, default=None))]
            merits.append(mean(dice))
        for task in kinds:
            pairs = list(zip(_entries(lines, task, "class"), _entries(lines, task, "predicted"), strict=True))
            right = sum(true == predicted for true, predicted in pairs)
            cells.append(f"{right} of {len(pairs)}")
            merits.append(right / len(pairs) if pairs else nan)
        rows.append((merits[0] if merits else nan, patient, cells))
    rows.sort(key=lambda row: (row[0] != row[0], row[0], row[1]))
    shown = table(heads, [[patient, *cells] for _, patient, cells in rows[:_ROWS_SHOWN]])
    rest = table(heads, [[patient, *cells] for _, patient, cells in rows[_ROWS_SHOWN:]])
    more = f"<details><summary>{counted(len(rows) - _ROWS_SHOWN, f'more {run.unit}')}</summary>{rest}</details>"
    apart = not set(run.facts.get("training_patients", patients)) & set(patients)
    known = f", {'none of them' if len(rows) > 1 else 'which is not'} in the training set" if apart else ""
    first = [f"the lowest mean Dice of {task}" for task in maps[:1]] or [f"the fewest right in {t}" for t in kinds[:1]]
    order = f"; {first[0]} first" if first and len(rows) > 1 else ""
    note = f"<p class=soft>{escape(counted(len(rows), run.unit) + known + order)}.</p>"
    return f"<h2>Per {run.unit}</h2>{note}{shown}{more if len(rows) > _ROWS_SHOWN else ''}"


def spread(run: PastRun) -> list[str]:
    """For each task with masks, the distribution of Dice over the images, because a mean hides failures."""
    said = []
    for task in task_names(run.images):
        dice = sorted(_entries(run.images, task, "dice"))
        if dice:
            said.append(f"{task}: {_spread(dice)}.")
    return said


def _spread(dice: Sequence[float]) -> str:
    """`dice` is sorted."""
    count, low, high = len(dice), number(dice[0]), number(dice[-1])
    if low == high:
        return f"the one image has a Dice of {low}" if count == 1 else f"all {count} images have a Dice of {low}"
    below = sum(value < 0.5 for value in dice)
    tenth = f"one in ten has at most {number(dice[count // 10])}" if count >= 10 else f"the lowest has {low}"
    lowest = f"{below or 'none'} {'is' if below < 2 else 'are'} below 0.5"
    return f"half of the {count} images have a Dice of at least {number(dice[count // 2])}, {tenth}, and {lowest}"


def class_facts(run: PastRun) -> tuple[list[str], list[str]]:
    """For each task with classes: classes that were never recognised, and the range of sensitivity over classes.
    Accuracy hides both for rare classes."""
    missed, ranges = [], []
    for task in _tasks_with(run, "class"):
        pairs = list(zip(_entries(run.images, task, "class"), _entries(run.images, task, "predicted"), strict=True))
        totals = Counter(true for true, _ in pairs)
        right = Counter(true for true, predicted in pairs if true == predicted)
        never = [name for name in totals if not right[name]]
        if never:
            said = [f"{name} (0 of {counted(totals[name], 'image')})" for name in never]
            missed.append(f"{task}: never found: {', '.join(said)}.")
        absent = [name for name in _class_names(run, task) if name not in totals]
        without = f"; no image of {' or '.join(absent)} was held out" if absent else ""
        shares = sorted((right[name] / count, name) for name, count in totals.items())
        ranges.append(f"{task}: {_range(shares)}{without}.")
    return missed, ranges


def _range(shares: Sequence[tuple[float, str]]) -> str:
    """`shares` are (sensitivity, class), sorted."""
    (low, worst), (high, best) = shares[0], shares[-1]
    if len(shares) == 1:
        return f"all held-out images are of {best}, and {percent(high)} of them were recognised"
    if percent(low) == percent(high):
        return f"sensitivity is {percent(low)} in each of the {len(shares)} classes"
    return f"sensitivity per class is from {percent(low)} ({worst}) to {percent(high)} ({best})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], best: Sequence[tuple[int, int]] = ()) -> str:
    """A table whose first column is text and the others numbers; cells (row, column) in `best` are bold."""
    head = "".join(
        f"<th scope=col{' class=number' if index else ''}>{escape(name)}</th>" for index, name in enumerate(heads)
    )
    body = []
    for row, cells in enumerate(rows):
        numbers = "".join(
            f'<td class="number{" best" if (row, column) in best else ""}">{escape(cell)}</td>'
            for column, cell in enumerate(cells[1:], 1)
        )
        body.append(f"<tr><td>{escape(cells[0])}</td>{numbers}</tr>")
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"


def task_names(images: Sequence[JsonMapping]) -> list[str]:
    """In the order of their first image."""
    return list(dict.fromkeys(task for line in images for task in line["tasks"]))


def _groups(lines: Sequence[JsonMapping], task: str) -> list[tuple[str, list[JsonMapping]]]:
    """Titles and tiles of the worst, the typical and the best; two halves if the run does not label them."""
    lines = sorted(lines, key=lambda line: line["tasks"][task]["score"])
    groups: dict[str, list[JsonMapping]] = {"worst": [], "typical": [], "best": []}
    for place, line in enumerate(lines):
        shown = line["tasks"][task].get("shown", "worst" if place < (len(lines) + 1) // 2 else "best")
        groups.get(shown, groups["worst"]).append(line)
    groups["best"].reverse()
    if len({number(line["tasks"][task]["score"]) for line in lines}) == 1:
        return [("tiles, which all score the same" if len(lines) > 1 else "only tile", lines)]
    titles = {"worst": "worst tiles", "typical": "typical tiles, near the median", "best": "best tiles"}
    return [(titles[name], found) for name, found in groups.items() if found]


def _class_names(run: PastRun, task: str) -> list[str]:
    """The task's classes in order: those of its column or its probabilities, if they include all classes seen."""
    entries = [line["tasks"][task] for line in run.images if "class" in line["tasks"].get(task, {})]
    seen = {name for entry in entries for name in (entry["class"], entry["predicted"])}
    told = list(entries[0].get("probabilities", {}))
    column = run.classes(task)
    if not run.options(task) and len(_tasks_with(run, "class")) > 1:  # the task's column is unknown
        column = told or column
    return next((names for names in (column, told) if seen | set(told) <= set(names)), sorted(seen))


def _tiles(run: PastRun, task: str, lines: Sequence[JsonMapping]) -> str:
    figures = []
    for line in lines:
        entry = line["tasks"][task]
        label, notes = _caption(line, entry)
        name = line["id"].rsplit("/", 1)[-1]
        lost = f"the tile {line['id']} is shown without its picture"
        image = picture(run, entry["thumbnail"], ", ".join([label, *notes, name]), lost)
        text = "<br>".join(escape(note) for note in [*notes, name])
        figures.append(f"<figure>{image}<figcaption><b>{escape(label)}</b><br>{text}</figcaption></figure>")
    return f"<div class=tiles>{''.join(figures)}</div>"


def _caption(line: JsonMapping, entry: JsonMapping) -> tuple[str, list[str]]:
    """The score of a tile, and its classes in this task or, for masks, in any task with classes."""
    if "class" in entry:
        sure = f"{percent(entry['probability'])} sure"
        return f"taken for {entry['predicted']}", [sure, f"true class: {entry['class']}"]
    notes = class_answers(line)
    if "true_area" in entry:  # a tile that is all foreground has no visible outline
        notes.append(f"area: true {percent(entry['true_area'])}, predicted {percent(entry['predicted_area'])}")
    return f"{'IoU' if 'iou' in entry else 'Dice'} {number(entry['score'])}", notes


def class_answers(line: JsonMapping) -> list[str]:
    """True and predicted class of an image in each task with classes; with the task's name if there are several."""
    found = {task: entry for task, entry in line["tasks"].items() if "class" in entry}
    said = []
    for task, entry in found.items():
        wrong = "" if entry["class"] == entry["predicted"] else f", taken for {entry['predicted']}"
        said.append(f"{_titled(task, list(found), entry['class'])}{wrong}")
    return said


def _class_table(
    run: PastRun, task: str, lines: Sequence[JsonMapping], classes: Sequence[str], found: Mapping[tuple[str, str], int]
) -> str:
    maps = _tasks_with(run, "dice")
    rows = []
    for name in classes:
        members = [line for line in lines if line["tasks"][task]["class"] == name]
        right = found.get((name, name), 0)
        predicted = sum(count for (_, other), count in found.items() if other == name)
        dice = [number(mean(_entries(members, map_task, "dice"))) for map_task in maps]
        patients = UNKNOWN if run.by_tile else str(len({line.get("patient") for line in members}))
        shares = [percent(right / total) if total else UNKNOWN for total in (len(members), predicted)]
        rows.append([name, str(len(members)), patients, *shares, *dice])
    unit = "Patient" if run.by_tile else run.unit.capitalize()
    dices = [_titled(name, maps, "Dice") for name in maps]
    heads = ["Class", "Images", f"{unit}s", "Sensitivity", "Precision", *dices]
    return table(heads, rows)


def _summary_tables(run: PastRun) -> list[str]:
    return [
        _summary_table(f"{task}: {key.replace('_', ' ')}", values)
        for task, metrics in run.scores.items()
        for key, values in metrics.items()
        if isinstance(values, dict)
    ]


def _summary_table(title: str, values: JsonMapping) -> str:
    """`values` are class -> value, or score -> (class -> value)."""
    scores = values if all(isinstance(one, dict) for one in values.values()) else {"": values}
    heads = [f"{title} {score}".strip() for score in scores]
    names = dict.fromkeys(name for one in scores.values() for name in one)
    return table(["Class", *heads], [[name, *(number(one.get(name)) for one in scores.values())] for name in names])


def _tasks_with(run: PastRun, key: str) -> list[str]:
    return [task for task in task_names(run.images) if _entries(run.images, task, key)]


def _titled(task: str, tasks: Sequence[str], what: str) -> str:
    """The header of a column; with the task's name only if there are several, to fit a phone."""
    return f"{task}: {what}" if len(tasks) > 1 else what


def _entries(lines: Sequence[JsonMapping], task: str, key: str) -> list[Any]:
    return [line["tasks"][task][key] for line in lines if key in line["tasks"].get(task, {})]


def _absent(run: PastRun, what: str) -> str:
    why = "holds no image that can be shown" if (run.folder / "evaluation.jsonl").exists() else "does not exist"
    return f"<p class=soft>No {what}: this run's evaluation.jsonl {why}; training writes it when it ends.</p>"
