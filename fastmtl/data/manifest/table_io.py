"""Reads and writes CSV and Parquet files as text cells with line numbers: the files of manifests."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import reason_of
from ...utils.atomic_io import replacing
from ...utils.limited_reads import MAX_BYTES
from ...utils.optional_imports import require
from ...utils.words import few, printable
from ..identifiers import strip_invisible
from ..text import read_text

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".parquet"})
_EXACT = 2**53  # larger whole numbers of a float column have lost digits: they keep their exponent
_DELIMITERS = ",;\t"
_DELIMITER_LINE = re.compile(r'"?sep=(.)"?')  # Excel writes it before the first line
_LONGEST_CELL = 2**31 - 1  # characters; run-length codes exceed the 131,072 that Python allows by default
_MAX_COLUMNS = 10_000
_SHOWN = 20  # columns in a message
_MAX_DELIMITERS = 2**20  # in a line, also inside quotes
_MAX_CELLS = 2**25  # of a Parquet file, which may repeat a cell a million times in a few bytes


@dataclass(frozen=True)
class TextTable:
    """A header and its rows.

    Attributes:
        path: the file.
        names: of the columns, without surrounding blanks.
        rows: each as long as `names`; an empty text is an empty cell.
        lines: line number of each row, as an editor counts (from 2 in a Parquet file).
        blanks: column -> (cell as written, cell as read) with blanks at an end -> how often.
    """

    path: Path
    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]
    blanks: Mapping[str, Counter[tuple[str, str]]] = field(default_factory=dict)

    @property
    def listed_names(self) -> str:
        """The names of the columns, for messages."""
        return few([*map(printable, self.names)], _SHOWN)

    def written(self, name: str) -> dict[str, tuple[str, int]]:
        """The cells of a column that are not empty: cell as written -> (cell as read, how often)."""
        at = self.names.index(name)
        cells = Counter(row[at] for row in self.rows if row[at])
        blanks = self.blanks.get(name, {})
        for (_, cell), count in blanks.items():
            cells[cell] -= count
        return {cell: (cell, count) for cell, count in cells.items() if count} | {
            written: (cell, count) for (written, cell), count in blanks.items()
        }

    def place(self, row: int) -> str:
        """The file and line of `row`, for messages."""
        return f"{self.path}, line {self.lines[row]}"


def read_table(path: Path) -> TextTable:
    """Read a CSV (comma, semicolon or tab, by its first line; with or without BOM; any line ends) or a Parquet file.

    Excel's line "sep=;" and columns without a name and any cell are ignored.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: another ending, not UTF-8, empty, an unnamed or repeated column, a row of another length; the
            message names the line.
    """
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise ValueError(f"{path} is no table: expected an ending of {', '.join(sorted(TABLE_SUFFIXES))}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    table = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    if len(table.names) > _MAX_COLUMNS:
        raise ValueError(f"{path} has {len(table.names):,} columns, more than {_MAX_COLUMNS:,}")
    unnamed = [number for number, name in enumerate(table.names, 1) if not name]
    if unnamed:
        index = " (the index of pandas? write it with index=False)" if unnamed == [1] else ""
        raise ValueError(f"{path}: column {unnamed[0]} has no name in the first line{index}; name or remove it")
    twice = [name for name, count in Counter(table.names).items() if count > 1]
    if twice:
        raise ValueError(f"{path} has two columns named {twice[0]!r}")
    if not table.rows:
        raise ValueError(f"{path} has a header and no rows")
    return table


def write_table(path: Path, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table atomically: CSV with commas and "\\n", or Parquet, by the ending."""
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise ValueError(f"{path} is no table: expected an ending of {', '.join(sorted(TABLE_SUFFIXES))}")
    with replacing(path) as partial:
        if path.suffix.lower() == ".parquet":
            arrow = require("pyarrow", "writing Parquet files", "wsi")
            parquet = require("pyarrow.parquet", "writing Parquet files", "wsi")
            columns = {name: [row[at] or None for row in rows] for at, name in enumerate(names)}
            schema = arrow.schema([(name, arrow.string()) for name in names])
            parquet.write_table(arrow.table(columns, schema=schema), partial)
        else:
            with partial.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",", lineterminator="\n")
                writer.writerows([names, *rows])


def _read_csv(path: Path) -> TextTable:
    text = read_text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise ValueError(f"{path} is empty; expected a first line with column names")
    declared = _DELIMITER_LINE.fullmatch(first.strip())
    delimiter = declared[1] if declared else max(_DELIMITERS, key=first.count)
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(_lines(path, text, delimiter), delimiter=delimiter, strict=True)
    names: tuple[str, ...] = ()
    written, lines = [], []
    start = 1
    try:
        for cells in reader:
            line, start = start, reader.line_num + 1
            if not any(map(strip_invisible, cells)):
                continue
            if declared:
                declared = None
            elif not names:
                names = tuple(map(strip_invisible, cells))
            elif len(cells := _without_blank_end(cells, len(names))) != len(names):
                raise ValueError(
                    f"{path}, line {line}: {len(cells)} cells, and the first line names {len(names)} columns"
                )
            else:
                written.append(cells)
                lines.append(line)
    except csv.Error as error:
        raise ValueError(f"{path}, line {start}: {error}") from None
    return _trimmed(path, names, written, lines)


def _lines(path: Path, text: str, delimiter: str) -> Iterator[str]:
    """The lines of a table; ValueError for one of too many cells, before they are read."""
    for number, line in enumerate(io.StringIO(text, newline=""), 1):
        if line.count(delimiter) > _MAX_DELIMITERS:
            raise ValueError(f"{path}, line {number}: more than {_MAX_DELIMITERS:,} cells")
        yield line


def _without_blank_end(cells: list[str], least: int) -> list[str]:
    """Without the empty cells that spreadsheets add after the last column; at least `least` cells stay."""
    end = len(cells)
    while end > least and not strip_invisible(cells[end - 1]):
        end -= 1
    return cells[:end]


def _read_parquet(path: Path) -> TextTable:
    parquet = require("pyarrow.parquet", "reading Parquet files", "wsi")
    try:
        with parquet.ParquetFile(path) as file:
            _check_declared(file.metadata)
        texts = [field.name for field in file.schema_arrow if str(field.type) in ("string", "large_string", "binary")]
        content = parquet.read_table(path, read_dictionary=texts)
        columns = [_cells(content.column(at)) for at in range(content.num_columns)]
        names = tuple(map(strip_invisible, content.column_names))
    except Exception as error:  # Arrow raises its own types and Python's on damaged files
        raise ValueError(f"{path} cannot be read as Parquet: {reason_of(error)}") from error
    return _trimmed(path, names, zip(*columns, strict=True), range(2, content.num_rows + 2))


def _check_declared(metadata: Any) -> None:
    """Raise ValueError if a Parquet file declares more than is read."""
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    size, cells = sum(group.total_byte_size for group in groups), metadata.num_rows * metadata.num_columns
    if metadata.num_columns > _MAX_COLUMNS or cells > _MAX_CELLS or size > MAX_BYTES:
        raise ValueError(
            f"declares {metadata.num_rows:,} rows of {metadata.num_columns:,} columns in {size:,} bytes; at most "
            f"{_MAX_CELLS:,} cells, {_MAX_COLUMNS:,} columns and {MAX_BYTES:,} bytes are read"
        )


def _cells(column: Any) -> list[str]:
    """The cells of a column as text; repeated texts share their memory."""
    cells: list[str] = []
    for chunk in column.chunks:
        if hasattr(chunk, "dictionary"):
            texts = ["" if text is None else _text(text) for text in chunk.dictionary.to_pylist()]
            cells += ["" if at is None else texts[at] for at in chunk.indices.to_pylist()]
        else:
            cells += map(_text, chunk.to_pylist())
    return cells


def _trimmed(path: Path, names: tuple[str, ...], written: Iterable[Sequence[str]], lines: Iterable[int]) -> TextTable:
    blanks: dict[str, Counter[tuple[str, str]]] = {}
    written = list(written)
    kept = [at for at, name in enumerate(names) if name or any(strip_invisible(cells[at]) for cells in written)]
    if len(kept) < len(names):
        names, written = tuple(names[at] for at in kept), [[cells[at] for at in kept] for cells in written]
    rows = []
    for cells in written:
        row = tuple(map(strip_invisible, cells))
        for name, cell, bare in zip(names, cells, row, strict=True):
            if cell != bare and bare:
                blanks.setdefault(name, Counter())[cell, bare] += 1
        rows.append(row)
    return TextTable(path, names, tuple(rows), tuple(lines), blanks)


def _text(value: object) -> str:
    if value is None or value != value:  # an empty cell that went through pandas is NaN
        return ""
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value))
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:  # whole numbers of a float column
        return str(int(value))
    return str(value)
