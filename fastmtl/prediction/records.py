"""predictions.jsonl and quarantine.jsonl: sorted by name, and written by several ranks.

Rank 0 appends to the file itself, the others to a hidden file beside it (`.predictions.1.jsonl`): appends of several
machines to one file can overwrite each other. `rewrite` joins them, also those that killed ranks left.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from ..training.run_dir import read_lines
from ..utils.atomic_io import append, write_whole
from ..utils.json_toml import JsonMapping, JsonObject

LINES, QUARANTINE = "predictions.jsonl", "quarantine.jsonl"
"""In an output folder: a line per image or slide, and a line for each that could not be read."""

_POSITION = ("y", "x")  # of a damaged tile in its slide


def append_lines(path: Path, lines: Iterable[JsonMapping], rank: int = 0) -> None:
    """Append to `path`, or to this rank's file beside it."""
    if text := "".join(json.dumps(line) + "\n" for line in lines):
        append(_part(path, str(rank)) if rank else path, text)


def read_records(path: Path, key: str) -> list[JsonObject]:
    """The records of all ranks that have a name in `key`, sorted by it; each once."""
    found = {}
    for file in (path, *_parts(path)):
        for record in read_lines(file)[0]:
            if isinstance(record.get(key), str):
                found[json.dumps(record)] = record
    return sorted(found.values(), key=lambda record: (Path(record[key]), *(record.get(at, 0) for at in _POSITION)))


def rewrite(path: Path, key: str, keep: Callable[[str], bool] = lambda name: True) -> list[JsonObject]:
    """Join the files of all ranks into `path`, without the names that `keep` refuses; returns the records. No file if
    there is none."""
    found = [record for record in read_records(path, key) if keep(record[key])]
    if found:
        write_whole(path, "".join(json.dumps(record) + "\n" for record in found))
    else:
        path.unlink(missing_ok=True)
    for file in _parts(path):
        file.unlink()
    return found


def _part(path: Path, rank: str) -> Path:
    return path.with_name(f".{path.stem}.{rank}{path.suffix}")


def _parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(_part(path, "*").name))
