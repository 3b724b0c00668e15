"""Compiles the cases in a process of its own and prints what was found as JSON; `compile_cases` starts it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from .cases import cases
from .machine_code import hot_loop, usage
from .record import Recorder


def main() -> None:
    recorder, found = Recorder().start(), {}
    for case in cases():
        recorder.launches.clear()
        recorder.failures.clear()
        case.run()
        for name, grid, kernel in recorder.launches:
            key = f"{name}-{case.label}"
            if key in found:
                continue
            num_warps = kernel.metadata.num_warps
            row: dict[str, Any] = {"usage": asdict(usage(kernel)), "grid": grid, "num_warps": num_warps}
            if name in case.work:
                loop, work, names = hot_loop(kernel), case.work[name], kernel.src.fn.arg_names
                settings = {names[path[0]]: value for path, value in kernel.src.constants.items()}
                per_thread = work.per_thread(settings | {"num_warps": num_warps}, loop)
                row |= {"loop": asdict(loop), "bytes_per_element": work.bytes, "per_thread": per_thread}
            found[key] = row
        for name, error in recorder.failures:
            found[f"{name}-{case.label}"] = {"error": error}
    json.dump(found, sys.stdout)


main()
