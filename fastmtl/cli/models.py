"""`fastmtl models`: lists every network and its paper's tasks, without building one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import models
from ..utils.optional_imports import DISTRIBUTION
from .arguments import Parser


def list_models(arguments: Sequence[str]) -> int:
    """Print every network."""
    parser = Parser("models", "The networks, their papers, parameters and strides.")
    parser.add_json()
    found = rows()
    if parser.parse(arguments).json:
        print(json.dumps(found, indent=1))
    else:
        show(found, Console())
    return 0


def rows() -> list[dict[str, Any]]:
    """One dict per model and set of tasks: "model", "tasks", "parameters" and the "options" for which they are counted,
    "channels", "strides", "paper", "summary", "install" (the required extra, or "") and "tiny" (the options of the
    preset)."""
    found: list[dict[str, Any]] = []
    for name in models.list_models():
        info = models.model_info(name)
        common = {
            "channels": list(info.channels),
            "strides": list(info.strides),
            "paper": info.paper,
            "summary": info.summary,
            "install": f"{DISTRIBUTION}[{info.extra}]" if info.extra else "",
            "tiny": dict(info.tiny),
        }
        for label, row in info.rows.items():
            own = {"model": name, "tasks": label, "parameters": row.parameters, "options": dict(row.options)}
            found.append(own | common)
        if not info.rows:  # registered by the user
            found.append({"model": name, "tasks": "", "parameters": None, "options": {}} | common)
    return found


def show(found: list[dict[str, Any]], console: Console) -> None:
    """Print `found`, paper by paper; fits 80 columns."""
    for paper in dict.fromkeys(row["paper"] for row in found):
        rows = [row for row in found if row["paper"] == paper]
        table = Table(title=paper or "yours", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        table.add_column("model", no_wrap=True)
        table.add_column("tasks")
        table.add_column("parameters", justify="right", no_wrap=True)
        table.add_column("strides")
        last = None
        for row in rows:
            first, last = row["model"] != last, row["model"]
            table.add_row(
                row["model"] if first else "",
                row["tasks"],
                "" if row["parameters"] is None else f"{row['parameters'] / 1e6:.2f} M",
                " ".join(map(str, row["strides"])) if first else "",
            )
        console.print(table)
        for extra in sorted({row["install"] for row in rows} - {""}):
            needing = dict.fromkeys(row["model"] for row in rows if row["install"] == extra)
            console.print(f"  pip install '{extra}' for {', '.join(needing)}", style="dim", markup=False)
        console.print()
