"""Training, validation and test sets that share no patient.

Many patients have several tiles, some in several classes, so a split by tile tests on patients that were trained on.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from ..extras import require
from ..names import nearest
from ..parsing import read_json
from ..whole_files import write_whole
from .dataset import Dataset, Tile


@dataclass(frozen=True)
class Split:
    """Tile ids for training, for validation and, in a three-way split, for the test; the patients that are held out.

    What is called a patient here is the tiles' group: see `with_groups` for splits by case or by a patient's day.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    held_out_groups: tuple[str, ...]
    test: tuple[str, ...] = ()
    test_groups: tuple[str, ...] = ()

    def apply(self, folder: Dataset) -> tuple[Dataset, Dataset]:
        """(training folder, validation folder), checked to share no patient with each other or the test."""
        train, val = folder.subset(self.train), folder.subset(self.val)
        check_no_leak(train.tiles, val.tiles)
        test = self.test_of(folder).tiles
        check_no_leak(train.tiles, test, ("training", "the test"))
        check_no_leak(val.tiles, test, ("validation", "the test"))
        return train, val

    def test_of(self, folder: Dataset) -> Dataset:
        """The test folder; empty in a split without one."""
        return folder.subset(self.test)


def check_no_leak(
    train: Iterable[Tile], val: Iterable[Tile], sides: tuple[str, str] = ("training", "validation")
) -> None:
    """Raises ValueError naming the patients with tiles on both sides."""
    shared = sorted({tile.group for tile in train} & {tile.group for tile in val})
    if shared:
        names = ", ".join(shared[:5]) + (f" and {len(shared) - 5} more" if len(shared) > 5 else "")
        raise ValueError(
            f"{len(shared)} patient(s) are in {sides[0]} and in {sides[1]}: {names}; "
            "split by patient, see grouped_split"
        )


def split_by_groups(folder: Dataset, groups: Iterable[str], test_groups: Iterable[str] = ()) -> Split:
    """Hold out the patients `groups` for validation and `test_groups` for the test (case does not matter).

    Raises:
        ValueError: a patient is not in the folder or on both lists, or training or validation would be empty.
    """
    held_out, tested = ({group.upper() for group in listed} for listed in (groups, test_groups))
    unknown = sorted((held_out | tested) - {group.upper() for group in folder.groups})
    if unknown:
        raise ValueError(f"`groups` names {len(unknown)} patient(s) not in {folder.root}, first {unknown[0]!r}")
    if held_out & tested:
        raise ValueError(f"`groups` and `test_groups` both name {min(held_out & tested)!r}")
    sides: tuple[list[str], list[str], list[str]] = ([], [], [])
    for tile in folder.tiles:
        group = tile.group.upper()
        sides[1 if group in held_out else 2 if group in tested else 0].append(tile.id)
    train, val, test = map(tuple, sides)
    if not train or not val:
        raise ValueError(f"`groups` leaves {len(train)} training, {len(val)} validation tiles; both need some")
    return Split(train, val, tuple(sorted(held_out)), test, tuple(sorted(tested)))


def split_by_column(folder: Dataset) -> Split | None:
    """The split that a manifest's own column `split` tells; None when no tile has one.

    Raises:
        ValueError: a tile without a side, training or validation empty, or a patient on two sides.
    """
    told = [tile.values.get("split") for tile in folder.tiles]
    if not any(told):
        return None
    for tile, side in zip(folder.tiles, told, strict=True):
        if side not in ("train", "val", "test"):
            raise ValueError(f"{folder.root}: tile {tile.id} has no split; expected train, val or test, got {side!r}")
    sides = [
        tuple(tile for tile, side in zip(folder.tiles, told, strict=True) if side == wanted)
        for wanted in ("train", "val", "test")
    ]
    if not sides[0] or not sides[1]:
        raise ValueError(
            f"{folder.root}: its split has {len(sides[0])} training, {len(sides[1])} validation tiles; both need some"
        )
    ids = [tuple(tile.id for tile in side) for side in sides]
    groups = [tuple(sorted({tile.group for tile in side})) for side in sides]
    split = Split(ids[0], ids[1], groups[1], ids[2], groups[2])
    split.apply(folder)
    return split


def grouped_split(
    folder: Dataset, val_fraction: float = 0.2, seed: int = 0, *, test_fraction: float = 0.0, stratify: str = ""
) -> Split:
    """Hold out about these fractions of the tiles, whole patients at a time, with similar class shares on all sides.

    Args:
        folder: what to split.
        val_fraction: share for validation.
        seed: of the draw.
        test_fraction: share for the test; 0 makes none. 0.2 and 0.1 give 70 / 20 / 10.
        stratify: label column whose classes are to be shared out; "" is the tiles' own label.

    Raises:
        ValueError: fractions out of range, an unknown column, or too few patients.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"`val_fraction` must be between 0 and 1; got {val_fraction}")
    if test_fraction == 0:
        return split_by_groups(folder, _share(folder, val_fraction, seed, stratify))
    if not 0 < test_fraction < 1 - val_fraction:
        raise ValueError(f"`test_fraction` must be between 0 and 1 - val_fraction; got {test_fraction}")
    test = _share(folder, test_fraction, seed, stratify)
    rest = replace(folder, tiles=tuple(tile for tile in folder.tiles if tile.group not in set(test)))
    return split_by_groups(folder, _share(rest, val_fraction / (1 - test_fraction), seed, stratify), test)


def kfold(folder: Dataset, num_folds: int = 5, seed: int = 0, *, stratify: str = "") -> list[Split]:
    """`num_folds` splits; every patient is held out in exactly one."""
    return [split_by_groups(folder, fold) for fold in _held_out_per_fold(folder, num_folds, seed, stratify)]


def _share(folder: Dataset, fraction: float, seed: int, stratify: str) -> list[str]:
    """The patients of about this fraction of the tiles."""
    most = max(2, min(20, len(folder.groups)))  # folds that there are patients for
    share = Fraction(fraction).limit_denominator(most)
    if share in (0, 1):
        share = Fraction(1, most) if share == 0 else Fraction(most - 1, most)
    folds = _held_out_per_fold(folder, share.denominator, seed, stratify)
    return [group for fold in folds[: share.numerator] for group in fold]


def _held_out_per_fold(folder: Dataset, num_folds: int, seed: int, stratify: str) -> list[list[str]]:
    if num_folds < 2 or num_folds > len(folder.groups):
        raise ValueError(
            f"{num_folds} folds need 2 or more, and as many patients; {folder.root} has {len(folder.groups)} patient(s)"
        )
    model_selection = require("sklearn.model_selection", "splitting by patient")
    labels = _labels(folder, stratify)
    groups = [tile.group for tile in folder.tiles]
    splitter = model_selection.StratifiedGroupKFold(n_splits=num_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer tiles than folds cannot be in every fold; the others are stratified all the same.
        warnings.filterwarnings("ignore", message="The least populated class")
        try:
            parts = [val for _, val in splitter.split(labels, labels, groups)]
        except ValueError as error:
            raise ValueError(f"{folder.root} cannot be split into {num_folds} folds: {error}") from error
    return [sorted({groups[i] for i in part}) for part in parts]


def _labels(folder: Dataset, column: str) -> list[int]:
    if column not in ("", "label") and column not in folder.classes:
        raise ValueError(f"`stratify` must name a label column; {nearest(column, ['label', *folder.classes])}")
    found = [label_of(tile, column) for tile in folder.tiles]
    return [-1 if label is None else label for label in found]


def label_of(tile: Tile, column: str) -> int | None:
    """The tile's class in a label column; "" and "label" are its own."""
    label = tile.label if column in ("", "label") else tile.values.get(column)
    return label if isinstance(label, int) else None


def save_split(split: Split, path: str | Path) -> None:
    """Write `split` as JSON, whole or not at all."""
    content = {"validation_patients": split.held_out_groups, "train": split.train, "validation": split.val}
    if split.test:
        content |= {"test_patients": split.test_groups, "test": split.test}
    write_whole(Path(path), json.dumps(content, indent=1) + "\n")


def load_split(path: str | Path) -> Split:
    """Read what `save_split` wrote."""
    content = _read_json(path, ("train", "validation", "validation_patients"))
    train, val, held_out = (tuple(content[key]) for key in ("train", "validation", "validation_patients"))
    return Split(train, val, held_out, tuple(content.get("test", ())), tuple(content.get("test_patients", ())))


def load_groups(path: str | Path) -> tuple[str, ...]:
    """The validation patients named in a split file, for `split_by_groups`."""
    return tuple(_read_json(path, ("validation_patients",))["validation_patients"])


def load_test_groups(path: str | Path) -> tuple[str, ...]:
    """The test patients named in a split file; none in a split of two sides."""
    return tuple(_read_json(path, ("validation_patients",)).get("test_patients", ()))


def _read_json(path: str | Path, keys: Sequence[str]) -> dict[str, list[str]]:
    try:
        content = read_json(Path(path))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not a readable split file: {error}") from error
    missing = [key for key in keys if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    listed = [] if missing else [(key, value) for key, value in content.items() if isinstance(value, list)]
    if wrong := next((key for key, value in listed if not all(isinstance(one, str) for one in value)), None):
        raise ValueError(f"{path} is not a split file: {wrong!r} lists something else than names, as text")
    if missing:
        raise ValueError(f"{path} is not a split file: it has no list named {missing[0]!r}")
    return content
