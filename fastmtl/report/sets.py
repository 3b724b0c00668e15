"""The data sets of a run that trained on several: their tasks, images and share of the training."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..utils.json_toml import JsonMapping
from .charts import line_chart
from .curves import curve
from .past_run import PastRun


def set_section(run: PastRun) -> str:
    """A table with a row for each set; "" for a run on one data set."""
    sets = run.facts.get("sets")
    if not sets:
        return ""
    moved = [record for record in run.records if "sets" in record]  # by data.sets_zeta
    share = "share at the start" if moved else "share of the training"
    heads = ("set", "tasks", "images to train", "held out", "test", share)
    head = "".join(f"<th scope=col>{name}</th>" for name in heads)
    body = []
    for name, of in sets.items():
        counts = [str(of[f"{side}_images"]) for side in ("training", "validation", "test")]
        cells = [", ".join(of["tasks"]), *counts, f"{of['share']:.1%}"]
        own = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        body.append(f"<tr><th scope=row>{escape(name)}</th>{own}</tr>")
    mixed = run.config.get("data", {}).get("sets_batches") == "mixed"
    note = "They trained one network; each batch has images of " + ("all sets." if mixed else "one set.")
    note += " A score SET/TASK is of that set's images; the other tasks have labels in one set."
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f"<h2>Data sets</h2><p class=soft>{note}</p><div class=wide>{table}</div>{_shares(moved, list(sets))}"


def _shares(records: Sequence[JsonMapping], names: Sequence[str]) -> str:
    """The share of each set over the epochs; "" if shares are constant."""
    if not records:
        return ""
    lines = [curve(records, name, lambda record, name=name: record["sets"][name]["share"]) for name in names]
    chart = line_chart("Shares of the training", lines, high=1.0)
    note = "They follow the size and the noise of the sets' gradients, measured in the epoch before."
    return f"<p class=soft>{note}</p><div class=grid>{chart}</div>"
