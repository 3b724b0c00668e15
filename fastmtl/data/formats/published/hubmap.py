"""HuBMAP + HPA: tissue images of five organs, the functional units as run-length codes down columns."""

from __future__ import annotations

from math import isfinite
from pathlib import Path

from ...dataset import Dataset, Problem, Tile
from ...identifiers import sample_key
from ...images.run_lengths import RunLengths
from ._files import assemble, read_known_table, require_path

LAYOUT = "train_images/ID.tiff and train.csv with id, organ, img_height, img_width and rle"
SOURCES = ("HPA", "Hubmap")
_COLUMNS = ("id", "organ", "img_height", "img_width", "rle")


def looks_like(root: Path) -> bool:
    """Whether `root` has the layout of this data set."""
    return (root / "train.csv").is_file() and next((root / "train_images").glob("*.tiff"), None) is not None


def read(root: Path) -> Dataset:
    """The images with masks and `organ`, also as the label, so that splits are stratified by organ as in the paper.

    Values: `organ` and `source` (`SOURCES`, also if all images are of one) as classes, `pixel_size` and
    `tissue_thickness` (micrometres), `age`.
    The data set names no patients: each image is its own patient.

    Raises:
        FileNotFoundError, ValueError: the folder or the table does not fit the layout.
    """
    rows = list(read_known_table(root / "train.csv", _COLUMNS, LAYOUT))
    require_path(root / "train_images", LAYOUT)
    sources = _names(rows, "data_source")
    classes = {"organ": _names(rows, "organ"), "source": tuple(sorted({*sources, *SOURCES})) if sources else ()}
    tiles, problems = [], []
    for place, row in rows:
        if Path(row["id"]).name != row["id"]:
            raise ValueError(f"{place}: id must be the name of an image in train_images; got {row['id']!r}")
        name = sample_key(row["id"])  # a table that went through pandas may say 123.0
        file = root / "train_images" / f"{name}.tiff"
        if not file.is_file():
            problems.append(Problem(file, f"named in {place}, but does not exist"))
            continue
        height, width = (_whole(row[name], name, place) for name in ("img_height", "img_width"))
        organ = _index(classes["organ"], row["organ"])
        values = {"organ": organ, "source": _index(classes["source"], row.get("data_source", ""))}
        values |= {name: _number(row.get(name, ""), name, place) for name in ("pixel_size", "tissue_thickness", "age")}
        mask = RunLengths(row["rle"], height, width, "column") if row["rle"] else None
        tiles.append(Tile(name, file, mask, organ, name, values))
    return assemble(root, classes["organ"], tiles, problems, LAYOUT, {k: v for k, v in classes.items() if v})


def _names(rows: list[tuple[str, dict[str, str]]], column: str) -> tuple[str, ...]:
    return tuple(sorted({row[column] for _, row in rows if row.get(column)}))


def _index(names: tuple[str, ...], name: str) -> int | None:
    return names.index(name) if name else None


def _whole(cell: str, column: str, place: str) -> int:
    try:
        return int(cell)
    except ValueError:
        raise ValueError(f"{place}: {column} must be a whole number of pixels; got {cell!r}") from None


def _number(cell: str, column: str, place: str) -> float | None:
    try:
        number = float(cell) if cell else None
        if number is None or isfinite(number):
            return number
    except ValueError:
        pass
    raise ValueError(f"{place}: {column} must be a number or empty; got {cell!r}")
