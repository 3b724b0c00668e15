"""`fastmtl models`: every network with what its paper trains it for, before any is built."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from . import models


def rows() -> list[dict[str, Any]]:
    """A dict per model and set of tasks: "model", "tasks", "parameters", "channels", "strides", "paper", "summary",
    "install" (what to install for it, empty for nothing) and "tiny" (the preset's options)."""
    found: list[dict[str, Any]] = []
    for name in models.list_models():
        info = models.model_info(name)
        common = {
            "channels": list(info.channels),
            "strides": list(info.strides),
            "paper": info.paper,
            "summary": info.summary,
            "install": f"fastmtl[{info.extra}]" if info.extra else "",
            "tiny": dict(info.tiny),
        }
        for label, row in info.rows.items():
            found.append({"model": name, "tasks": label, "parameters": row.parameters} | common)
        if not info.rows:  # somebody's own
            found.append({"model": name, "tasks": "", "parameters": None} | common)
    return found


def show(found: list[dict[str, Any]], console: Console) -> None:
    """Print `found` as a table."""
    table = Table("model", "tasks", "parameters", "channels", "strides", "from", "needs", title_justify="left")
    table.columns[2].justify = "right"
    last = None
    for row in found:
        first = row["model"] != last
        last = row["model"]
        table.add_row(
            row["model"] if first else "",
            row["tasks"],
            "" if row["parameters"] is None else f"{row['parameters'] / 1e6:.2f} M",
            " ".join(map(str, row["channels"])) if first else "",
            " ".join(map(str, row["strides"])) if first else "",
            row["paper"] if first else "",
            row["install"].replace("[", r"\[") if first else "",
        )
    console.print(table)
