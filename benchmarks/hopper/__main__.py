"""Compiles the cases in a process of its own and prints what was found as JSON; `compile_cases` starts it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from .cases import cases
from .launch_compiler import LaunchCompiler
from .machine_code import hot_loop, usage


def main() -> None:
    compiler, found = LaunchCompiler().start(), {}
    for case in cases():
        compiler.launches.clear()
        compiler.failures.clear()
        case.run()
        names = [name for name, _, _ in compiler.launches]
        for name, grid, kernel in compiler.launches:
            key = f"{name}-{case.label}"
            if key in found:
                continue
            num_warps = kernel.metadata.num_warps
            row: dict[str, Any] = {"usage": asdict(usage(kernel)), "grid": grid, "num_warps": num_warps}
            if name in case.work:
                loop, work, arguments = hot_loop(kernel), case.work[name], kernel.src.fn.arg_names
                settings = {arguments[path[0]]: value for path, value in kernel.src.constants.items()}
                per_thread = work.per_thread(settings | {"num_warps": num_warps}, loop)
                row |= {"loop": asdict(loop), "bytes_per_element": work.bytes, "per_thread": per_thread}
                row["launches"] = names
            found[key] = row
        for name, error in compiler.failures:
            found[f"{name}-{case.label}"] = {"error": error}
    json.dump(found, sys.stdout)


main()
