"""The cards with the scores of a run, their intervals over patients, and the means over patients."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from ..utils.json_toml import JsonMapping
from ..utils.words import counted
from .charts import number
from .curves import label

Scores = Mapping[tuple[str, str], float]


def score_cards(scores: Scores, over: JsonMapping) -> str:
    """A card for each score.

    Args:
        over: "patients" of the summary; {} for a run of an earlier version.
    """
    cards = []
    for (task, name), value in scores.items():
        span = over.get("intervals", {}).get(task, {}).get(name)
        spread = "" if span is None else f"<small>{number(span[0])} to {number(span[1])}</small>"
        title = f"<span>{escape(task)}: {escape(label(name))}</span>"
        cards.append(f"<div class=fact>{title}<b>{number(value)}</b>{spread}</div>")
    return f"<div class=facts>{''.join(cards)}</div>"


def uncertainty_note(over: JsonMapping, scores: Scores) -> str:
    """What the small numbers of the cards are, and the scores as means over patients; "" without intervals."""
    intervals, means = over.get("intervals", {}), over.get("means", {})
    if not any(name in intervals.get(task, {}) for task, name in scores):
        return ""
    unit, count = over["unit"], over["count"]
    note = f"The range below a score is its 95% interval over the {counted(count, unit)}"
    note += ", which are resampled as a whole. " if unit == "patient" else ". "
    if count < 20:
        note += f"Intervals of so few {unit}s are too narrow. "
    over_patients = [
        f"{task} {label(name)} {number(means[task][name])}"
        for task, name in scores
        if unit == "patient" and name in means.get(task, {})
    ]
    return note + (
        f"As a mean over patients, each counting alike: {', '.join(over_patients)}." if over_patients else ""
    )
