"""Saliency maps, feature maps and filters, from analyses.json."""

from __future__ import annotations

from html import escape

from ..utils.json_toml import JsonMapping
from ..utils.words import counted, percent
from .charts import number
from .images import class_answers
from .past_run import PastRun
from .pictures import picture

_SALIENCY = (
    "How much each pixel would change the answer: the gradient of a class's score, or of a mask's foreground, by the "
    "input (Simonyan and others, 2014), its mean over 5 x 5 pixels as yellow light. Below, the share of it that falls "
    "on the true area, that of the first task with masks, and how much of the image that is: alike, it is no better "
    "than chance."
)
_FEATURES = (
    "From the encoder's finest to its coarsest stride: the mean over all channels at the top left, then the channels, "
    "at most seven, each from its lowest value, black, to its highest, white."
)


def saliency_section(run: PastRun) -> str:
    """A row for each image: the input, then the saliency of each task; "" for a run without.

    Analyses that failed are added to the problems.
    """
    run.problems += [f"{name}: the analysis failed: {why}" for name, why in run.analyses.get("failed", {}).items()]
    images, entries = run.analyses.get("images", []), run.analyses.get("saliency", [])
    if not entries:
        return ""
    rows = []
    for place, image in enumerate(images):
        name = str(image["id"]).rsplit("/", 1)[-1]
        figures = [_figure(run, image["picture"], "input", [*_answers(run, image["id"]), name])]
        for entry in entries:
            if entry["image"] == place:
                figures.append(_figure(run, entry["picture"], str(entry["task"]), _notes(entry)))
        rows.append(f"<div class='tiles small'>{''.join(figures)}</div>")
    return f"<h2>Where the network looks</h2><p class=soft>{_SALIENCY}</p>{''.join(rows)}"


def feature_section(run: PastRun) -> str:
    """A sheet for each stride of the encoder, and one of the first filters; "" for a run without."""
    maps, filters = run.analyses.get("features", {}).get("maps", []), run.analyses.get("filters", {})
    if not maps and not filters:
        return ""
    parts = ["<h2>Inside the encoder</h2>"]
    if maps:
        figures = [
            _figure(
                run,
                one["picture"],
                f"stride {one['stride']}",
                [f"{one['channels']} channels, {one['height']} by {one['width']}"],
            )
            for one in maps
        ]
        images = run.analyses.get("images", [])
        of = f"Of {escape(str(images[0]['id']).rsplit('/', 1)[-1])}. " if images else ""
        parts.append(
            f"<h3>Feature maps</h3><p class=soft>{of}{_FEATURES}</p><div class='tiles sheets'>{''.join(figures)}</div>"
        )
    if filters:
        height, width = filters["size"]
        what = counted(filters["count"], "filter")
        what = f"{filters['shown']} of {what}" if filters["shown"] < filters["count"] else what
        said = f"{what}, {height} by {width} pixels; grey is 0, each reaches its own greatest weight"
        figure = _figure(run, filters["picture"], "first convolution", [said])
        parts.append(f"<h3>Filters</h3><div class='tiles sheets'>{figure}</div>")
    return "".join(parts)


def _figure(run: PastRun, name: str, label: str, notes: list[str]) -> str:
    notes = [note for note in notes if note]
    image = picture(run, str(name), ", ".join([label, *notes]), f"{label} is shown without its picture")
    text = "".join(f"<br>{escape(note)}" for note in notes)
    return f"<figure>{image}<figcaption><b>{escape(label)}</b>{text}</figcaption></figure>"


def _answers(run: PastRun, name: str) -> list[str]:
    """The scores of the image in each task, from evaluation.jsonl, and the reason for its selection."""
    line: JsonMapping = next((line for line in run.images if line["id"] == name), {"tasks": {}})
    said = class_answers(line)
    for task, entry in line["tasks"].items():
        if "dice" in entry:
            among = {"worst": ", among the worst", "best": ", among the best", "typical": ", typical"}
            said.append(f"{task}: Dice {number(entry['dice'])}{among.get(entry.get('shown', ''), '')}")
    return said


def _notes(entry: JsonMapping) -> list[str]:
    if "on_true" not in entry:
        return []
    return [f"{percent(entry['on_true'])} on the true area, {percent(entry['true_area'])} of the image"]
