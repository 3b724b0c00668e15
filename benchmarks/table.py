"""The output of `fastmtl bench`: a table for each case, the meaning of its columns, and changes since a commit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from . import store
from .measure import Row
from .registry import Case, is_floor


def case_table(case: Case, rows: Sequence[Row], bandwidth: float) -> Table:
    """The table of a case, without rows that have no figures (see `left_out`)."""
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
        how = f" ({row.timing})" if row.timing not in ("", "clock") else ""
        table.add_row(row.contender + how, *cells)
    return table


def left_out(case: Case, rows: Sequence[Row]) -> list[str]:
    """One line for each contender without figures; one line for all if the whole case failed for the same reason."""
    if len({row.note for row in rows}) == 1 and rows[0].note:
        return [f"left out, every contender of {case.title}: {rows[0].note}"]
    return [f"left out: {row.contender}: {row.note}" for row in rows if row.note]


def key(case: Case) -> dict[str, str]:
    """Column or row of the table of `case` -> its meaning."""
    meanings = {"times fastmtl": "time divided by fastmtl's time, median over rounds"}
    if case.figures:
        meanings["aim"] = "this project's target for that ratio"
    meanings["peak"] = "peak memory during a run, without its inputs"
    if case.min_bytes:
        meanings["of copy bandwidth"] = (
            "bytes that must be moved, divided by the time and by the bandwidth of a large copy; above 100%, caches "
            "served a part"
        )
    floors = filter(is_floor, case.contenders)
    return meanings | dict.fromkeys(floors, "a floor: only reads or decodes what every contender must")


def change_table(revision: str, changes: Sequence[store.Change]) -> Table:
    table = Table(title=f"Compared with the stored rows of {revision}", title_justify="left")
    table.add_column("case")
    table.add_column("")
    for name in ("then ms", "now ms", "now / then"):
        table.add_column(name, justify="right")
    for change in changes:
        figures = (f"{change.before:.2f}", f"{change.now:.2f}", f"{change.ratio:.2f}")
        table.add_row(change.title, change.contender, *figures)
    return table
