"""HEp-2 cells (I3A, as the joint U-Net paper cut it): grey patches with masks, a staining pattern and an intensity."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from ...dataset import Dataset, Problem, Tile
from ...identifiers import clean_name, last_part
from ...text import read_text
from ._files import assemble

LAYOUT = "dataset/train/00001_p0_patch0.tif with ..._patch0_Mask.tif, and a CSV of image, mask, label, intensity"
INTENSITIES = ("intermediate", "positive")


def looks_like(root: Path) -> bool:
    """Whether `root` has the layout of this data set."""
    return next(root.glob("**/*_patch*_Mask.tif"), None) is not None


def read(root: Path) -> Dataset:
    """The patches with mask, pattern (the label) and `intensity`; the patient is the number at the start of a name.

    The tables have no header; all that are found are read together (the authors' fold tables repeat the same rows).
    Labels are trimmed, and the published `mitsp` stays as it is.

    Raises:
        FileNotFoundError, ValueError: no patches, no table, or rows that contradict each other.
    """
    files: dict[str, Path] = {}
    for file in sorted(root.glob("**/*.tif")):
        if (other := files.setdefault(clean_name(file.name), file)) != file:
            raise ValueError(f"{file} and {other} have the same name, which the tables use for them; remove one")
    rows: dict[str, tuple[str, str, str]] = {}
    for place, cells in _rows(root):
        image, mask, *labels = cells
        found = (clean_name(last_part(mask)), labels[0], labels[1])
        if rows.setdefault(clean_name(last_part(image)), found) != found:
            raise ValueError(f"{place}: {image} is in another row with another mask, label or intensity")
    names = tuple(sorted({label for _, label, _ in rows.values() if label}))
    tiles, problems = [], []
    for image, (mask, label, intensity) in rows.items():
        if intensity and intensity not in INTENSITIES:
            raise ValueError(f"{root}: {image} has the intensity {intensity!r}; expected {' or '.join(INTENSITIES)}")
        if image not in files:
            problems.append(Problem(root / image, "named in a table, but does not exist"))
            continue
        tiles.append(
            Tile(
                Path(image).stem,
                files[image],
                files.get(mask),
                names.index(label) if label else None,
                image.split("_")[0],
                {"intensity": INTENSITIES.index(intensity) if intensity else None},
            )
        )
    return assemble(root, names, tiles, problems, LAYOUT, {"intensity": INTENSITIES})


def _rows(root: Path) -> Iterator[tuple[str, list[str]]]:
    tables = sorted(root.glob("**/*.csv"))
    if not tables:
        raise FileNotFoundError(f"no table in {root}; expected {LAYOUT}")
    for table in tables:
        try:
            rows = list(csv.reader(read_text(table).splitlines()))
        except csv.Error as error:
            raise ValueError(f"{table} is not a table: {error}") from None
        for number, cells in enumerate(rows, 1):
            trimmed = [cell.strip() for cell in cells]
            if not any(trimmed):
                continue
            if len(trimmed) != 4:
                raise ValueError(
                    f"{table}, line {number}: {len(trimmed)} cells; expected image, mask, label, intensity"
                )
            yield f"{table}, line {number}", trimmed
