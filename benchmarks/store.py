"""The CSV file with the rows of all runs: append, read, and compare with the rows of another commit."""

from __future__ import annotations

import csv
import math
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
# Two rows are comparable if these columns are equal.
_WHERE = ("device", "instructions", "torch", "cold", "kept_memory", "timing")
_KEYS = ("op", "shape", "mode", "contender", *_WHERE)
_NUMBERS = ("p20_ms", "p50_ms", "p80_ms", "times_fastmtl", "items_per_s", "gb_per_s", "share_of_copy")
_WHOLE = ("threads", "peak_bytes", "min_bytes")
COLUMNS = (
    *("date", "commit", "device", "instructions", "threads", "torch", "op", "shape", "mode", "contender"),
    *("contender_version", "rounds"),
    *("p20_ms", "p50_ms", "p80_ms", "times_fastmtl", "items_per_s", "peak_bytes", "min_bytes", "gb_per_s"),
    *("share_of_copy", "cold", "kept_memory", "timing", "note"),
)
# Columns that older files do not have, and their values for these files.
_ADDED = {"contender_version": "", "rounds": "", "timing": "clock"}

Stored = dict[str, Any]


class BrokenFile(ValueError):
    """A CSV that is damaged or has other columns; the message says which line and why."""


@dataclass(frozen=True)
class Change:
    """One contender now and at another commit, median milliseconds; `ratio` above 1 is slower now."""

    title: str
    contender: str
    before: float
    now: float

    @property
    def ratio(self) -> float:
        return self.now / self.before


def default_path(device_name: str, instructions: str) -> Path:
    """The committed file for the rows of a device and an instruction set.

    >>> default_path("AMD EPYC, 2 threads", "avx2").name
    'amd-epyc-2-threads-avx2.csv'
    """
    return RESULTS / f"{re.sub('[^a-z0-9]+', '-', f'{device_name} {instructions}'.lower()).strip('-')}.csv"


def read(path: Path) -> list[Stored]:
    """All rows, numbers as numbers, oldest first.

    Raises:
        BrokenFile: the file cannot be read, has other columns, or a line does not fit them.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = tuple(next(reader, ()))
            if not _known(header):
                raise BrokenFile(f"{path}: its first line must name the columns {', '.join(COLUMNS)}.")
            return [_parse(path, reader.line_num, header, cells) for cells in reader]
    except OSError as error:
        raise BrokenFile(f"{path}: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise BrokenFile(f"{path}: {error}") from error


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append `rows` to `path`, which is created if necessary; missing columns are first added to an older file."""
    new = not path.exists()
    if not new:
        _widen(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def newest(rows: Sequence[Stored]) -> dict[tuple[Any, ...], Stored]:
    """The last row of each case, contender and machine; rows without figures are ignored."""
    return {_key(row): row for row in rows if not math.isnan(row["p50_ms"])}


def compare(now: Sequence[Stored], stored: Sequence[Stored], commit: str) -> list[Change]:
    """Compare `now` with the newest rows of `commit` in `stored` that have the same device, instruction set, torch
    version, cache and allocator settings."""
    before = newest(of_commit(stored, commit))
    return [
        Change(title(row), row["contender"], before[key]["p50_ms"], row["p50_ms"])
        for key, row in newest(now).items()
        if key in before
    ]


def of_commit(stored: Sequence[Stored], commit: str) -> list[Stored]:
    """The rows measured at `commit` (which may be abbreviated), with or without uncommitted changes."""
    return [row for row in stored if row["commit"].startswith(commit[:12])]


def nothing_to_compare(wanted: Sequence[Mapping[str, Any]], stored: Sequence[Stored], commit: str) -> str:
    """Why no row of `wanted` (without figures) can be compared with the rows of `commit` in `stored`; "" if one can."""
    before = list(newest(of_commit(stored, commit)).values())
    if not before:
        return "no rows of it"
    keys = {_key(row) for row in before}
    if any(_key(row) in keys for row in wanted):
        return ""
    cases = {title(row) for row in wanted}
    places = dict.fromkeys(_where(row) for row in before if title(row) in cases)
    if not places:
        return "rows of it, but of other cases"
    return f"rows of it from {'; '.join(places)}, and this would be {_where(wanted[0])}"


def title(row: Mapping[str, Any]) -> str:
    return f"{row['op']}  {row['shape']}  {row['mode']}"


def resolve(revision: str) -> str:
    """The full commit of a git revision. Outside git, or if it looks like a commit that git no longer has, the text is
    returned unchanged, because rows may be older than the history.

    Raises:
        ValueError: git does not know the revision.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return revision
    command = ["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode and re.fullmatch("[0-9a-f]{7,40}", revision):
        return revision
    if done.returncode:
        raise ValueError(f"git has no commit {revision!r}.")
    return done.stdout.strip()


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _KEYS)


def _where(row: Mapping[str, Any]) -> str:
    cache, memory = "cold" if row["cold"] else "warm", ", freed memory kept" if row["kept_memory"] else ""
    timed = "" if row["timing"] == "clock" else f", timed by {row['timing']}"
    return f"{row['device']}, {row['instructions']}, torch {row['torch']}, {cache} cache{memory}{timed}"


def _known(header: tuple[str, ...]) -> bool:
    return set(COLUMNS) - set(_ADDED) <= set(header) <= set(COLUMNS) and len(header) == len(set(header))


def _widen(path: Path) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = tuple(next(reader, ()))
        if header == COLUMNS or not _known(header):
            return
        rows = [_ADDED | dict(zip(header, cells, strict=True)) for cells in reader]
    beside = path.with_suffix(".tmp")
    with beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    beside.replace(path)


def _parse(path: Path, line: int, header: Sequence[str], cells: list[str]) -> Stored:
    if len(cells) != len(header):
        raise BrokenFile(f"{path}, line {line}: {len(cells)} cells instead of {len(header)}.")
    row: Stored = _ADDED | dict(zip(header, cells, strict=True))
    try:
        row |= {name: float(row[name]) for name in _NUMBERS}
        row |= {name: int(row[name]) for name in _WHOLE}
        row["rounds"] = int(row["rounds"]) if row["rounds"] else None
        row |= {name: {"True": True, "False": False}[row[name]] for name in ("cold", "kept_memory")}
    except (ValueError, KeyError) as error:
        raise BrokenFile(f"{path}, line {line}: {error} is not valid in its column.") from None
    return row
