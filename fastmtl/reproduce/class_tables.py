"""Tables with a column for each class."""

from __future__ import annotations

from collections.abc import Sequence

from .cells import DEEP, both, cell, label, number, table, title
from .plan import Result
from .scores import TEST


def class_tables(results: Sequence[Result]) -> list[str]:
    """A table per task and score that the paper reports per class, and of the recall of each class of a classification;
    cited rows have no model here."""
    keys = [key for result in results for key in result.row.published.paper.figures]
    families: dict[str, list[str]] = {}
    for key in dict.fromkeys(keys):
        if any(deep in key for deep in DEEP):
            families.setdefault(key.rpartition(".")[0], []).append(key)
    for family, members in _recalls(results).items():
        families.setdefault(family, members)
    parts = []
    for family, members in families.items():
        rows = []
        for result in results:
            for who, place in (("paper", 0), ("ours", 1)):
                texts = [both(cell(result, key), len(result.summaries))[place] for key in members]
                if any(texts):
                    rows.append([f"{title(result)}, {who}", *texts])
        rows += [
            [f"{name}, cited by the paper", *(number(of.get(key)) for key in members)]
            for name, of in results[0].row.published.paper.cited.items()
            if any(key in of for key in members)
        ]
        parts += [f"## {label(family)}\n", table(["Row", *(key.rpartition(".")[2] for key in members)], rows)]
    return parts


def _recalls(results: Sequence[Result]) -> dict[str, list[str]]:
    """TASK.per_class of the classifications -> the keys of its classes."""
    found: dict[str, list[str]] = {}
    for summary in (summary for result in results for summary in result.summaries.values()):
        for prefix, tasks in (("", summary["tasks"]), (TEST, summary.get("test", {}).get("tasks", {}))):
            for task, scores in tasks.items():
                per_class = scores.get("per_class", {}) if "balanced_accuracy" in scores else {}
                family = f"{prefix}{task}.per_class"
                found.setdefault(family, [f"{family}.{name}" for name in per_class])
    return {family: keys for family, keys in found.items() if keys}
