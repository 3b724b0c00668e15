"""Training and validation sets that share no patient.

Many patients have several tiles, some in several classes, so a split by tile tests on patients that were trained on.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ..extras import require
from .dataset import Dataset, Tile


@dataclass(frozen=True)
class Split:
    """Tile ids for training and for validation, and the patients that are held out."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    held_out_groups: tuple[str, ...]

    def apply(self, folder: Dataset) -> tuple[Dataset, Dataset]:
        """(training folder, validation folder), checked to share no patient."""
        train, val = folder.subset(self.train), folder.subset(self.val)
        check_no_leak(train.tiles, val.tiles)
        return train, val


def check_no_leak(train: Iterable[Tile], val: Iterable[Tile]) -> None:
    """Raises ValueError naming the patients with tiles on both sides."""
    shared = sorted({tile.group for tile in train} & {tile.group for tile in val})
    if shared:
        names = ", ".join(shared[:5]) + (f" and {len(shared) - 5} more" if len(shared) > 5 else "")
        raise ValueError(
            f"{len(shared)} patient(s) are in training and in validation: {names}; split by patient, see grouped_split"
        )


def split_by_groups(folder: Dataset, groups: Iterable[str]) -> Split:
    """Hold out the patients `groups` (case does not matter).

    Raises:
        ValueError: a patient is not in the folder, or one side would be empty.
    """
    held_out = {group.upper() for group in groups}
    unknown = sorted(held_out - {group.upper() for group in folder.groups})
    if unknown:
        raise ValueError(f"`groups` names {len(unknown)} patient(s) not in {folder.root}, first {unknown[0]!r}")
    sides: tuple[list[str], list[str]] = ([], [])
    for tile in folder.tiles:
        sides[tile.group.upper() in held_out].append(tile.id)
    if not sides[0] or not sides[1]:
        raise ValueError(f"`groups` leaves {len(sides[0])} training, {len(sides[1])} validation tiles; both need some")
    return Split(tuple(sides[0]), tuple(sides[1]), tuple(sorted(held_out)))


def grouped_split(folder: Dataset, val_fraction: float = 0.2, seed: int = 0) -> Split:
    """Hold out about `val_fraction` of the tiles, whole patients at a time, with similar class shares on both sides."""
    if not 0 < val_fraction < 1:
        raise ValueError(f"`val_fraction` must be between 0 and 1; got {val_fraction}")
    share = Fraction(val_fraction).limit_denominator(20)
    if share in (0, 1):
        share = Fraction(1, 20) if share == 0 else Fraction(19, 20)
    folds = _held_out_per_fold(folder, share.denominator, seed)
    return split_by_groups(folder, [group for fold in folds[: share.numerator] for group in fold])


def kfold(folder: Dataset, num_folds: int = 5, seed: int = 0) -> list[Split]:
    """`num_folds` splits; every patient is held out in exactly one."""
    return [split_by_groups(folder, fold) for fold in _held_out_per_fold(folder, num_folds, seed)]


def _held_out_per_fold(folder: Dataset, num_folds: int, seed: int) -> list[list[str]]:
    if num_folds < 2 or num_folds > len(folder.groups):
        raise ValueError(
            f"{num_folds} folds need 2 or more, and as many patients; {folder.root} has {len(folder.groups)} patient(s)"
        )
    model_selection = require("sklearn.model_selection", "splitting by patient")
    labels = [-1 if tile.label is None else tile.label for tile in folder.tiles]
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


def save_split(split: Split, path: str | Path) -> None:
    """Write `split` as JSON, whole or not at all."""
    path = Path(path)
    content = {"validation_patients": split.held_out_groups, "train": split.train, "validation": split.val}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def load_split(path: str | Path) -> Split:
    """Read what `save_split` wrote."""
    content = _read_json(path, ("train", "validation", "validation_patients"))
    return Split(tuple(content["train"]), tuple(content["validation"]), tuple(content["validation_patients"]))


def load_groups(path: str | Path) -> tuple[str, ...]:
    """The validation patients named in a split file, for `split_by_groups`."""
    return tuple(_read_json(path, ("validation_patients",))["validation_patients"])


def _read_json(path: str | Path, keys: Sequence[str]) -> dict[str, list[str]]:
    try:
        content = json.loads(Path(path).read_text())
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not a readable split file: {error}") from error
    missing = [key for key in keys if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise ValueError(f"{path} is not a split file: it has no list named {missing[0]!r}")
    return content
