"""`fastmtl doctor`: installed packages, devices, and the state of every op's backends; `--resume`: the certificate of
exact resume."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..ops.core.backends import gpu_fallbacks, table  # imports all ops, which register their backends
from ..training.run_dir import environment
from .arguments import Parser

if TYPE_CHECKING:
    from rich.console import Console


_WITH_RESUME = ("data", "kills", "scale", "sets")


def doctor(arguments: Sequence[str]) -> int:
    """Print installed versions, devices and backends; or kill a training, resume it, and compare."""
    parser = _parser()
    parsed = parser.parse(arguments)
    if parsed.resume is None and (given := [name for name in _WITH_RESUME if getattr(parsed, name) not in (None, [])]):
        names = " ".join("--set" if name == "sets" else f"--{name}" for name in given)
        parser.error(f"{names} belongs to --resume RECIPE, the certificate of exact resume")
    if parsed.resume is not None:
        from .resume_certificate import print_certificate

        return print_certificate(parsed)
    as_json, found = parsed.json, examine()
    try:
        from rich.console import Console
    except ModuleNotFoundError:  # without extras, the ops and their backends still work
        Console = None
    if as_json or Console is None:
        print(json.dumps(found, indent=1))
    else:
        show(found, Console())
    return 0


def _parser() -> Parser:
    parser = Parser("doctor", "Print versions, devices, and the backend that each op uses.")
    parser.add_json()
    group = parser.add_argument_group("the certificate of exact resume")
    group.add_argument(
        "--resume",
        metavar="RECIPE",
        help="train a short version of RECIPE without interruption, and again with SIGKILLs after each of which the "
        "same command continues; compare both. The exit code is 0 only if they are bit-equal",
    )
    group.add_argument(
        "--data", type=Path, metavar="DIR", help="data, as for fastmtl train; a recipe with a generator makes its own"
    )
    group.add_argument("--kills", type=int, metavar="N", help="number of SIGKILLs (default: 6)")
    group.add_argument("--scale", help="scale of the recipe (default: tiny, if the recipe has it)")
    parser.add_set("with --resume: any key of the recipe, for example data.batch_size=4")
    return parser


def examine() -> dict[str, Any]:
    """{"environment", "devices", "bandwidth_gb_per_second" by device, "backends": op -> backend -> "ready" or the
    reason why not, "notes": what a GPU does without a missing backend}."""
    devices = ["cpu"] + [
        f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())
    ]
    return {
        "environment": environment(),
        "devices": devices,
        "bandwidth_gb_per_second": {name: bandwidth(torch.device(name.split()[0])) for name in devices},
        "backends": table(),
        "notes": [*gpu_fallbacks().values()],
    }


def bandwidth(device: torch.device) -> float:
    """GB/s that a copy of 128 MiB reads and writes, the best of five: the upper limit of a training step's update
    (`update_gb_per_second` in metrics.jsonl)."""
    source = torch.ones(1 << 25, device=device)
    target, best = torch.empty_like(source), 0.0
    for _ in range(5):
        _wait(device)
        started = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = max(best, 2 * source.nbytes / 1e9 / (time.perf_counter() - started))
    return round(best, 1)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def show(found: dict[str, Any], console: Console) -> None:
    """Print `found` as three short tables."""
    from rich.table import Table  # of the extra [train], which `examine` does not need

    versions = Table("package", "version", title="Versions", title_justify="left")
    packages = {"fastmtl": found["environment"]["fastmtl"], "python": found["environment"]["python"]}
    for name, version in (packages | found["environment"]["packages"]).items():
        versions.add_row(name, version or "[dim]not installed[/dim]")
    console.print(versions)
    devices = [f"{name} ({found['bandwidth_gb_per_second'][name]:g} GB/s)" for name in found["devices"]]
    console.print(f"Devices: {', '.join(devices)}; {found['environment']['threads']} CPU threads\n")
    backends = Table("op", "backend", "state", title="Backends, fastest first", title_justify="left")
    for op, states in sorted(found["backends"].items()):
        for number, (backend, state) in enumerate(states.items()):
            colour = "green" if state.startswith("ready") else "yellow"
            backends.add_row(op if number == 0 else "", backend, f"[{colour}]{state}[/{colour}]")
    console.print(backends)
    for note in found["notes"]:
        console.print(f"note: {note}", markup=False)
