"""`fastmtl bench`: measures cases, prints tables, appends rows to a CSV, compares them with another commit."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastmtl.training.run_dir import environment
from fastmtl.utils.optional_imports import install_extra

from . import load_cases, store, table
from .machine import contender_version, device_name, instructions
from .measure import Row, copy_bandwidth, is_missing, keep_memory, measure, reason, recording_cost
from .registry import Case, cases

FAILED, WRONG_USAGE, LEFT_OUT = 1, 2, 3  # exit codes; on_gpu.sh runs a case again unless it ended in 0 or LEFT_OUT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks; one failure does not stop the rest.

    Returns:
        1 if anything failed (a contender is wrong, raises an error or runs out of memory, or a file is broken), 2 if
        the arguments are wrong, 3 if something was skipped only because it is not installed, else 0.
    """
    options = _parser().parse_args(argv)
    # Without a terminal (a log, a pipe) rich assumes 80 columns, which would cut off names.
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        device = torch.device(options.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch built without CUDA
        return _complain(f"--device {options.device}: {str(error).splitlines()[0]}", WRONG_USAGE)
    if options.codegen:
        from .codegen import main as codegen

        return codegen()
    stored_in = options.out or store.default_path(device_name(device), instructions(device))
    if options.plot:
        return _plot(stored_in)
    missing = failed = False
    for name, error in load_cases().items():
        _complain(f"the cases of {name} are skipped: {reason(error)}")
        missing |= isinstance(error, ImportError)
        failed |= not isinstance(error, ImportError)
    chosen = cases(options.pattern)
    if not chosen:
        return _complain(f"no case matches {options.pattern!r}; `fastmtl bench --list` lists all.", WRONG_USAGE)
    if options.list:
        print("\n".join(case.title for case in chosen))
        return _status(failed, missing)
    try:
        commit = store.resolve(options.compare) if options.compare else ""
    except ValueError as error:
        return _complain(f"--compare: {error}", WRONG_USAGE)
    if options.out and options.out.is_dir():
        return _complain(f"--out: {options.out} is a folder; give a CSV file.", WRONG_USAGE)
    stored, out, broken = _stored(stored_in, options.out)
    here = environment()
    if commit:  # checked before hours of measuring
        wanted = [_facts(case, name, device, options, here) for case in chosen for name in case.contenders]
        why = store.nothing_to_compare(wanted, stored, commit) if stored_in.exists() else "the file does not exist"
        if why:
            return _complain(f"--compare {options.compare}: {stored_in}: {why}.", WRONG_USAGE)
    if out:
        try:
            store.append(out, [])
        except OSError as error:
            return _complain(f"--out: {out}: {error.strerror}", WRONG_USAGE)
    now = _measure(chosen, device, options, here, out, console)
    missing |= any(is_missing(row["note"]) for row in now)
    failed |= broken or any(row["note"] and not is_missing(row["note"]) for row in now)
    if commit:
        changes = store.compare(now, stored, commit)
        console.print(table.change_table(options.compare, changes) if changes else "No measured row can be compared.")
        failed |= not changes
    return _status(failed, missing)


def _measure(
    chosen: Sequence[Case],
    device: torch.device,
    options: argparse.Namespace,
    here: Mapping[str, Any],
    out: Path | None,
    console: Console,
) -> list[store.Stored]:
    """Measure and print case by case; the rows of a case are written to `out` before the next case begins."""
    if options.keep_memory:
        keep_memory()
    bandwidth = copy_bandwidth(device)
    console.print(
        f"{device_name(device)}, torch {torch.__version__}, copy bandwidth {bandwidth / 1e9:.1f} GB/s, "
        f"{options.rounds} rounds, {'cold' if options.cold else 'warm'} cache, "
        f"{1e6 * recording_cost(device):.1f} us to measure one run"
    )
    now: list[store.Stored] = []
    explained: dict[str, str] = {}
    for case in chosen:
        rows = measure(case, device, options.rounds, options.cold, options.eager)
        if not all(row.note for row in rows):
            console.print(table.case_table(case, rows, bandwidth))
            new = {name: meaning for name, meaning in table.key(case).items() if name not in explained}
            for name, meaning in new.items():
                console.print(f"  {name}: {meaning}", style="dim", highlight=False, markup=False)
            explained |= new
        for line in table.left_out(case, rows):
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        found = records(case, rows, device, bandwidth, options, here)
        now += found
        if out:
            store.append(out, found)
    return now


def records(
    case: Case,
    rows: Sequence[Row],
    device: torch.device,
    bandwidth: float,
    options: argparse.Namespace,
    here: Mapping[str, Any],
) -> list[store.Stored]:
    """The rows as they are stored, with the facts about case and machine."""
    found = []
    for row in rows:
        speed = case.min_bytes / (row.p50 * 1e-3)
        figures = {
            "p20_ms": row.p20,
            "p50_ms": row.p50,
            "p80_ms": row.p80,
            "times_fastmtl": row.ratio,
            "items_per_s": case.items / (row.p50 * 1e-3),
            "gb_per_s": speed / 1e9,
            "share_of_copy": speed / bandwidth,
        }
        rounded = {name: float(f"{value:.4g}") for name, value in figures.items()}
        facts = _facts(case, row.contender, device, options, here)
        found.append(
            facts | rounded | {"peak_bytes": row.peak_bytes, "timing": row.timing or facts["timing"], "note": row.note}
        )
    return found


def _facts(
    case: Case, contender: str, device: torch.device, options: argparse.Namespace, here: Mapping[str, Any]
) -> store.Stored:
    """A row without figures; `here` is `run_dir.environment()`."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": (here["commit"] or "")[:12] + ("+" if (here["commit"] or "").endswith("+") else ""),
        "device": device_name(device),
        "instructions": instructions(device),
        "threads": here["threads"],
        "torch": torch.__version__,
        "op": case.op,
        "shape": case.shape,
        "mode": case.mode,
        "contender": contender,
        "contender_version": contender_version(contender),
        "rounds": options.rounds,
        "min_bytes": case.min_bytes,
        "cold": options.cold,
        "kept_memory": options.keep_memory,
        "timing": "clock" if options.eager or device.type != "cuda" else "graph",
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastmtl bench", description="Benchmark fastmtl against other libraries.")
    parser.add_argument("pattern", nargs="?", default="", help="only cases whose title contains this")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--out", type=Path, metavar="CSV", help="append the rows to this file")
    parser.add_argument("--rounds", type=_count, default=15, help="runs of each contender (default 15)")
    parser.add_argument("--cold", action="store_true", help="clear the caches before every run")
    parser.add_argument("--eager", action="store_true", help="on a GPU, count the latency of launches too")
    parser.add_argument("--keep-memory", action="store_true", help="glibc keeps freed memory: avoids page faults")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--compare",
        metavar="REV",
        help="also print the ratio to the stored rows of another commit (in the file of --out, else the committed file "
        "of this device); REV is only looked up, not built or run",
    )
    parser.add_argument(
        "--plot",
        action="store_true",
        help="draw the stored rows (of --out, else the committed ones of this device) as SVG and stop",
    )
    parser.add_argument(
        "--codegen", action="store_true", help="print what the GPU kernels compile to, without a GPU, and stop"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _stored(path: Path, out: Path | None) -> tuple[list[store.Stored], Path | None, bool]:
    """The rows of `path`, the file for new rows, and whether `path` is broken. If it is, new rows go to another file,
    because they took long to measure."""
    if not path.exists():
        return [], out, False
    try:
        return store.read(path), out, False
    except store.BrokenFile as error:
        beside = out and out.with_suffix(".new.csv")
        _complain(f"{error}{f' New rows go to {beside}.' if beside else ''}")
        return [], beside, True


def _plot(path: Path) -> int:
    try:
        from . import plot

        pictures = plot.draw(store.read(path), path.parent)
    except store.BrokenFile as error:
        return _complain(str(error))
    except ImportError as missing:
        return _complain(f"--plot needs {missing.name}: {install_extra('bench')}")
    print("\n".join(map(str, pictures)) or f"{path} has no row with figures.")
    return int(not pictures)


def _status(failed: bool, missing: bool) -> int:
    return FAILED if failed else LEFT_OUT if missing else 0


def _complain(message: str, code: int = FAILED) -> int:
    print(f"fastmtl bench: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
