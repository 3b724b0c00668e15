"""Helpers for the readers of published folders: errors for missing files, tables with known columns, data sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ...dataset import Dataset, Problem, Tile, with_one_spelling
from ...identifiers import sample_key
from ...manifest.table_io import TextTable, read_table


def require_path(path: Path, layout: str) -> Path:
    """Return `path`; if it does not exist, raise FileNotFoundError with the expected layout."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected {layout}")
    return path


def read_known_table(path: Path, columns: Sequence[str], layout: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, cells by column) of each row.

    Raises:
        FileNotFoundError, ValueError: no such table, or one of `columns` is not in it.
    """
    table = read_table(require_path(path, layout))
    missing = [name for name in columns if name not in table.names]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {table.listed_names}; expected {layout}")
    return _rows(table)


def _rows(table: TextTable) -> Iterator[tuple[str, dict[str, str]]]:
    for number, row in enumerate(table.rows):
        yield table.place(number), dict(zip(table.names, row, strict=True))


def assemble(
    root: Path,
    class_names: Sequence[str],
    tiles: Sequence[Tile],
    problems: Sequence[Problem],
    layout: str,
    classes: dict[str, tuple[str, ...]] | None = None,
) -> Dataset:
    """The data set, its tiles ordered by id.

    Raises:
        FileNotFoundError: there is no tile.
        ValueError: two tiles have one id.
    """
    if not tiles:
        raise FileNotFoundError(f"no images in {root}; expected {layout}")
    ordered = sorted(tiles, key=lambda tile: tile.id)
    seen: dict[str, Tile] = {}
    for tile in ordered:
        if (other := seen.setdefault(sample_key(tile.id), tile)) is not tile:
            raise ValueError(f"{root} has two images with the id {other.id!a}, and {tile.id!a}")
    return with_one_spelling(Dataset(root, tuple(class_names), tuple(ordered), tuple(problems), classes or {}))
