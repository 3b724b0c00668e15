"""HEp-2 cells (I3A, as the joint U-Net paper cut it): grey patches with masks, a staining pattern and an intensity."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
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

    The tables have no header; all that are found are read together. The authors' fold tables, foldA_train.csv,
    foldA_test.csv and so on, repeat the same rows and give the folds. Labels are trimmed, and the published `mitsp`
    stays as it is.

    Raises:
        FileNotFoundError, ValueError: no patches, no table, rows that contradict each other, or fold tables that do not
            hold out every image once.
    """
    files: dict[str, Path] = {}
    for file in sorted(root.glob("**/*.tif")):
        if (other := files.setdefault(clean_name(file.name), file)) != file:
            raise ValueError(f"{file} and {other} have the same name, which the tables use for them; remove one")
    rows: dict[str, tuple[str, str, str]] = {}
    listed: dict[str, dict[str, set[str]]] = {}  # fold -> side -> images
    for table, place, cells in _rows(root):
        image, mask, *labels = cells
        found = (clean_name(last_part(mask)), labels[0], labels[1])
        if match := _FOLD_TABLE.fullmatch(table.name):
            listed.setdefault(match[1].upper(), {}).setdefault(match[2], set()).add(clean_name(last_part(image)))
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
    dataset = assemble(root, names, tiles, problems, LAYOUT, {"intensity": INTENSITIES})
    patches = {name for name in files if _PATCH.search(name)}
    return replace(dataset, folds=_folds(root, listed, rows.keys() | patches)) if listed else dataset


def _folds(
    root: Path, listed: Mapping[str, Mapping[str, set[str]]], images: Iterable[str]
) -> dict[str, frozenset[str]]:
    """Fold -> ids of the held-out tiles.

    Raises:
        ValueError: an image is not in exactly one side of every fold, and held out by exactly one fold.
    """
    images, folds = set(images), dict(sorted(listed.items()))
    for fold, sides in folds.items():
        for side in ("train", "test"):
            if side not in sides:
                raise ValueError(f"{root} has no fold{fold}_{side}.csv; fold tables come in pairs, _train and _test")
        if both := sides["train"] & sides["test"]:
            raise ValueError(f"{root}: {min(both)} is in fold{fold}_train.csv and in fold{fold}_test.csv")
        if lacking := images - sides["train"] - sides["test"]:
            raise ValueError(
                f"{root}: fold{fold}_train.csv and fold{fold}_test.csv do not have {len(lacking)} of the {len(images)} "
                f"images, first {min(lacking)}; complete the fold tables, or remove them all to have folds drawn"
            )
    counts = {image: [fold for fold, sides in folds.items() if image in sides["test"]] for image in images}
    if wrong := sorted(image for image, of in counts.items() if len(of) != 1):
        held = f"by {len(counts[wrong[0]])} folds ({', '.join(counts[wrong[0]]) or 'none'})"
        raise ValueError(
            f"{root}: {wrong[0]} (one of {len(wrong)} such images) is held out {held}; the test tables of the folds "
            f"{', '.join(folds)} must hold out every image once"
        )
    return {fold: frozenset(Path(image).stem for image in sides["test"]) for fold, sides in folds.items()}


_FOLD_TABLE = re.compile(r"fold([A-Z])_(train|test)\.csv", re.IGNORECASE)
_PATCH = re.compile(r"_patch\d+\.tif$")


def _rows(root: Path) -> Iterator[tuple[Path, str, list[str]]]:
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
            yield table, f"{table}, line {number}", trimmed
