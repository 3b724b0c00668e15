"""`fastmtl doctor`: installed packages, devices, and the state of every op's backends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..ops.core.backends import gpu_fallbacks, table  # imports all ops, which register their backends
from ..training.run_dir import environment
from .arguments import Parser

if TYPE_CHECKING:
    from rich.console import Console


def doctor(arguments: Sequence[str]) -> int:
    """Print installed versions, devices and backends."""
    parser = Parser("doctor", "Print versions, devices, and the backend that each op uses.")
    parser.add_json()
    as_json = parser.parse(arguments).json
    found = examine()
    try:
        from rich.console import Console
    except ModuleNotFoundError:  # without extras, the ops and their backends still work
        Console = None
    if as_json or Console is None:
        print(json.dumps(found, indent=1))
    else:
        show(found, Console())
    return 0


def examine() -> dict[str, Any]:
    """{"environment", "devices", "backends": op -> backend -> "ready" or the reason why not, "notes": what a GPU does
    without a missing backend}."""
    devices = ["cpu"] + [
        f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())
    ]
    return {"environment": environment(), "devices": devices, "backends": table(), "notes": [*gpu_fallbacks().values()]}


def show(found: dict[str, Any], console: Console) -> None:
    """Print `found` as three short tables."""
    from rich.table import Table  # of the extra [train], which `examine` does not need

    versions = Table("package", "version", title="Versions", title_justify="left")
    packages = {"fastmtl": found["environment"]["fastmtl"], "python": found["environment"]["python"]}
    for name, version in (packages | found["environment"]["packages"]).items():
        versions.add_row(name, version or "[dim]not installed[/dim]")
    console.print(versions)
    console.print(f"Devices: {', '.join(found['devices'])}; {found['environment']['threads']} CPU threads\n")
    backends = Table("op", "backend", "state", title="Backends, fastest first", title_justify="left")
    for op, states in sorted(found["backends"].items()):
        for number, (backend, state) in enumerate(states.items()):
            colour = "green" if state.startswith("ready") else "yellow"
            backends.add_row(op if number == 0 else "", backend, f"[{colour}]{state}[/{colour}]")
    console.print(backends)
    for note in found["notes"]:
        console.print(f"note: {note}", markup=False)
