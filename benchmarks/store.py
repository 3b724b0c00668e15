"""The rows of all runs in a CSV: appended to, read back, and compared with those of another commit."""

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
# What makes two rows comparable, and then what was found.
_KEYS = ("device", "op", "shape", "mode", "contender", "cold", "kept_memory")
_NUMBERS = ("p20_ms", "p50_ms", "p80_ms", "times_fastmtl", "items_per_s", "gb_per_s", "share_of_copy")
_WHOLE = ("threads", "peak_bytes", "min_bytes")
COLUMNS = (
    *("date", "commit", "device", "instructions", "threads", "torch", "op", "shape", "mode", "contender"),
    *("p20_ms", "p50_ms", "p80_ms", "times_fastmtl", "items_per_s", "peak_bytes", "min_bytes", "gb_per_s"),
    *("share_of_copy", "cold", "kept_memory", "note"),
)

Stored = dict[str, Any]


class BrokenFile(ValueError):
    """A CSV that is none of ours or was damaged; says which line and why."""


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


def default_path(device_name: str) -> Path:
    """Where a device's rows are committed."""
    return RESULTS / f"{re.sub('[^a-z0-9]+', '-', device_name.lower()).strip('-')}.csv"


def read(path: Path) -> list[Stored]:
    """All rows, numbers as numbers, oldest first.

    Raises:
        BrokenFile: the file cannot be read, has other columns, or a line does not fit them.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, None)
            if header is None or tuple(header) != COLUMNS:
                raise BrokenFile(f"{path}: its first line must name the columns {', '.join(COLUMNS)}.")
            return [_parse(path, reader.line_num, cells) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BrokenFile(f"{path}: {error}") from error


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add `rows` to `path`, which is made where it is not there."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def newest(rows: Sequence[Stored]) -> dict[tuple[Any, ...], Stored]:
    """The last row of each thing that was measured; rows without a figure do not count."""
    return {tuple(row[key] for key in _KEYS): row for row in rows if not math.isnan(row["p50_ms"])}


def compare(now: Sequence[Stored], stored: Sequence[Stored], commit: str) -> list[Change]:
    """`now` beside the newest rows that `stored` has of `commit`: same case, same settings, same device."""
    before = newest([row for row in stored if row["commit"] and row["commit"].rstrip("+") == commit[:12]])
    return [
        Change(title(row), row["contender"], before[key]["p50_ms"], row["p50_ms"])
        for key, row in newest(now).items()
        if key in before
    ]


def title(row: Mapping[str, Any]) -> str:
    return f"{row['op']}  {row['shape']}  {row['mode']}"


def resolve(revision: str) -> str:
    """The full commit of a git revision; outside git the text itself.

    Raises:
        ValueError: git does not know it.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return revision
    command = ["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"git knows no commit {revision!r}.")
    return done.stdout.strip()


def _parse(path: Path, line: int, cells: list[str]) -> Stored:
    if len(cells) != len(COLUMNS):
        raise BrokenFile(f"{path}, line {line}: {len(cells)} cells where {len(COLUMNS)} belong.")
    row: Stored = dict(zip(COLUMNS, cells, strict=True))
    try:
        row |= {name: float(row[name]) for name in _NUMBERS}
        row |= {name: int(row[name]) for name in _WHOLE}
        row |= {name: {"True": True, "False": False}[row[name]] for name in ("cold", "kept_memory")}
    except (ValueError, KeyError) as error:
        raise BrokenFile(f"{path}, line {line}: {error} is no value of its column.") from None
    return row
