"""`fastmtl bench`: measure, print a table, append the rows to a CSV, compare them with another commit's."""

from __future__ import annotations

import argparse
import math
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from fastmtl.ops._backends import extension
from fastmtl.run_folder import environment

from . import load_cases, store
from .measure import Row, copy_bandwidth, keep_memory, measure, reason, recording_cost
from .registry import Case, cases


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 when anything was left out (a contender that is missing, wrong or out of memory; a file that is
    broken; nothing to compare with), 2 when the arguments are wrong. What can be done is done first."""
    options = _parser().parse_args(argv)
    # Where nobody sets a width (a log, a pipe), 80 columns would cut names off.
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        device = torch.device(options.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch built without CUDA
        return _complain(f"--device {options.device}: {str(error).splitlines()[0]}", 2)
    if options.codegen:
        from .codegen import main as codegen

        return codegen()
    stored_in = options.out or store.default_path(device_name(device))
    if options.plot:
        return _plot(stored_in)
    left_out = load_cases()
    for name, error in left_out.items():
        _complain(f"the cases of {name} are left out: {reason(error)}", 1)
    chosen = cases(options.pattern)
    if not chosen:
        return _complain(f"no case matches {options.pattern!r}; `fastmtl bench --list` shows them.", 2)
    if options.list:
        print("\n".join(case.title for case in chosen))
        return int(bool(left_out))
    try:
        commit = store.resolve(options.compare) if options.compare else ""
    except ValueError as error:
        return _complain(f"--compare: {error}", 2)
    stored, out, broken = _stored(stored_in, options.out)
    if out:
        try:  # before hours of measuring, not after the first case
            store.append(out, [])
        except OSError as error:
            return _complain(f"--out: {error}", 2)
    failed = broken or bool(left_out)
    if options.keep_memory:
        keep_memory()
    bandwidth = copy_bandwidth(device)
    console.print(
        f"{device_name(device)}, torch {torch.__version__}, copy bandwidth {bandwidth / 1e9:.1f} GB/s, "
        f"{options.rounds} rounds, {'cold' if options.cold else 'warm'} cache, "
        f"{1e6 * recording_cost(device):.1f} us to measure one run"
    )
    now = []
    for case in chosen:
        rows = measure(case, device, options.rounds, options.cold)
        failed |= any(row.note for row in rows)
        console.print(_table(case, rows, bandwidth))
        for row in rows:
            if row.note:
                console.print(f"left out: {row.contender}: {row.note}", soft_wrap=True, highlight=False, markup=False)
        found = records(case, rows, device, bandwidth, options)
        now += found
        if out:
            store.append(out, found)
    if commit:
        failed |= not _show_changes(console, options.compare, store.compare(now, stored, commit), stored_in)
    return int(failed)


def records(
    case: Case, rows: Sequence[Row], device: torch.device, bandwidth: float, options: argparse.Namespace
) -> list[store.Stored]:
    """The rows with everything needed to judge them."""
    facts = environment()
    built = extension()
    common = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": (facts["commit"] or "")[:12] + ("+" if (facts["commit"] or "").endswith("+") else ""),
        "device": device_name(device),
        "instructions": built.isa() if built else "none",
        "threads": facts["threads"],
        "torch": torch.__version__,
        "op": case.op,
        "shape": case.shape,
        "mode": case.mode,
        "min_bytes": case.min_bytes,
        "cold": options.cold,
        "kept_memory": options.keep_memory,
    }
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
        rest = {"contender": row.contender, "peak_bytes": row.peak_bytes, "note": row.note}
        found.append(common | {name: float(f"{value:.4g}") for name, value in figures.items()} | rest)
    return found


def device_name(device: torch.device) -> str:
    """What the rows call the machine: the GPU, or the processor with the threads that torch uses of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name") or platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastmtl bench", description="Measure fastmtl beside its peers.")
    parser.add_argument("pattern", nargs="?", default="", help="only cases whose title contains this")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--out", type=Path, metavar="CSV", help="append the rows to this file")
    parser.add_argument("--rounds", type=_count, default=15, help="runs of each contender (default 15)")
    parser.add_argument("--cold", action="store_true", help="sweep the caches before every run")
    parser.add_argument("--keep-memory", action="store_true", help="glibc keeps freed memory: nobody pays page faults")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compare", metavar="REV", help="print the ratio to the stored rows of another commit")
    parser.add_argument("--plot", action="store_true", help="draw the stored rows (of --out) as SVG and stop")
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
        _complain(f"{error}{f' New rows go to {beside}.' if beside else ''}", 1)
        return [], beside, True


def _plot(path: Path) -> int:
    try:
        from . import plot

        pictures = plot.draw(store.read(path), path.parent)
    except store.BrokenFile as error:
        return _complain(str(error), 1)
    except ImportError as missing:
        return _complain(f"--plot needs {missing.name}: pip install 'fastmtl[bench]'", 1)
    print("\n".join(map(str, pictures)) or f"{path} has no row with a figure.")
    return int(not pictures)


def _show_changes(console: Console, revision: str, changes: Sequence[store.Change], path: Path) -> bool:
    if not changes:
        _complain(f"--compare: {path} has no rows of {revision} for these cases on this device.", 1)
        return False
    table = Table(title=f"Beside {revision}", title_justify="left")
    table.add_column("case")
    table.add_column("")
    for name in ("then ms", "now ms", "now / then"):
        table.add_column(name, justify="right")
    for change in changes:
        figures = (f"{change.before:.2f}", f"{change.now:.2f}", f"{change.ratio:.2f}")
        table.add_row(change.title, change.contender, *figures)
    console.print(table)
    return True


def _table(case: Case, rows: Sequence[Row], bandwidth: float) -> Table:
    table = Table(title=case.title, title_justify="left")
    table.add_column("", no_wrap=True)
    headings = ["p50 ms", "p20 to p80", "times fastmtl", *(["aim"] if case.figures else []), "peak MiB"]
    headings += ["of copy bandwidth"] if case.min_bytes else []
    headings += ["images/s"] if case.items else []
    for name in headings:
        table.add_column(name, justify="right")
    for row in rows:
        if row.note:
            continue
        aim = case.figures.get(row.contender)
        ratio = "\N{EN DASH}" if math.isnan(row.ratio) else f"{row.ratio:.2f}"
        cells = [f"{row.p50:.2f}", f"{row.p20:.2f} to {row.p80:.2f}", ratio]
        cells += [f">= {aim:g}" if aim else ""] if case.figures else []
        cells += [f"{row.peak_bytes / 2**20:.1f}"]
        cells += [f"{case.min_bytes / (row.p50 * 1e-3) / bandwidth:.0%}"] if case.min_bytes else []
        cells += [f"{case.items / (row.p50 * 1e-3):.0f}"] if case.items else []
        table.add_row(row.contender, *cells)
    return table


def _complain(message: str, code: int) -> int:
    print(f"fastmtl bench: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
