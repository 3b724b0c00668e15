"""`fastmtl bench`: measure, print a table, append the rows to a CSV, compare them with another commit's."""

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

from . import load_cases, store, table
from .machine import contender_version, device_name, instructions
from .measure import Row, copy_bandwidth, is_missing, keep_memory, measure, reason, recording_cost
from .registry import Case, cases

FAILED, WRONG_USAGE, LEFT_OUT = 1, 2, 3  # exit codes; on_gpu.sh runs a case again unless it ended in 0 or LEFT_OUT


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 when anything failed (a contender that is wrong, raises or is out of memory; a file that is broken), 2
    when the arguments are wrong, 3 when something was only left out because it is not installed. What can be done is
    done first."""
    options = _parser().parse_args(argv)
    # Where nobody sets a width (a log, a pipe), 80 columns would cut names off.
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
        _complain(f"the cases of {name} are left out: {reason(error)}")
        missing |= isinstance(error, ImportError)
        failed |= not isinstance(error, ImportError)
    chosen = cases(options.pattern)
    if not chosen:
        return _complain(f"no case matches {options.pattern!r}; `fastmtl bench --list` shows them.", WRONG_USAGE)
    if options.list:
        print("\n".join(case.title for case in chosen))
        return _status(failed, missing)
    try:
        commit = store.resolve(options.compare) if options.compare else ""
    except ValueError as error:
        return _complain(f"--compare: {error}", WRONG_USAGE)
    if options.out and options.out.is_dir():
        return _complain(f"--out: {options.out} is a folder; name a CSV file.", WRONG_USAGE)
    stored, out, broken = _stored(stored_in, options.out)
    here = environment()
    if commit:  # before hours of measuring, not after
        wanted = [_facts(case, name, device, options, here) for case in chosen for name in case.contenders]
        why = store.nothing_to_compare(wanted, stored, commit) if stored_in.exists() else "there is no such file"
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
        console.print(table.change_table(options.compare, changes) if changes else "Nothing measured can be compared.")
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
    """Measure and print case by case; a case's rows are in `out` before the next one begins."""
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
        rows = measure(case, device, options.rounds, options.cold)
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
    """The rows with everything needed to judge them."""
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
        found.append(facts | rounded | {"peak_bytes": row.peak_bytes, "note": row.note})
    return found


def _facts(
    case: Case, contender: str, device: torch.device, options: argparse.Namespace, here: Mapping[str, Any]
) -> store.Stored:
    """A row before anything is measured; `here` is `run_folder.environment()`."""
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
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastmtl bench", description="Measure fastmtl beside its peers.")
    parser.add_argument("pattern", nargs="?", default="", help="only cases whose title contains this")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--out", type=Path, metavar="CSV", help="append the rows to this file")
    parser.add_argument("--rounds", type=_count, default=15, help="runs of each contender (default 15)")
    parser.add_argument("--cold", action="store_true", help="sweep the caches before every run")
    parser.add_argument("--keep-memory", action="store_true", help="glibc keeps freed memory: nobody pays page faults")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--compare",
        metavar="REV",
        help="also print the ratio to the rows that another commit left in the file (of --out, else the committed one "
        "of this device); REV is looked up there, not built or run",
    )
    parser.add_argument(
        "--plot",
        action="store_true",
        help="draw the stored rows (of --out, else the committed ones of this device) as SVG and stop",
    )
    parser.add_argument("--codegen", action="store_true", help="what the GPU kernels compile to, with no GPU, and stop")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _stored(path: Path, out: Path | None) -> tuple[list[store.Stored], Path | None, bool]:
    """The rows of `path`, the file that new ones go to, and whether `path` is broken. New rows then go beside it:
    they took long to measure."""
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
        return _complain(f"--plot needs {missing.name}: pip install 'fastmtl[bench]'")
    print("\n".join(map(str, pictures)) or f"{path} has no row with a figure.")
    return int(not pictures)


def _status(failed: bool, missing: bool) -> int:
    return FAILED if failed else LEFT_OUT if missing else 0


def _complain(message: str, code: int = FAILED) -> int:
    print(f"fastmtl bench: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
