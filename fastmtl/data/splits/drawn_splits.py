"""Training, validation and test sets that share no patient.

Many patients have several tiles, some of several classes: a split by tile would test on patients of the training set.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations

from ...utils.optional_imports import require
from ...utils.suggestions import nearest
from ...utils.words import counted, few
from ..dataset import Dataset, Tile, label_of
from ..identifiers import identifier_key
from .site_folds import balanced_folds
from .sites import Units
from .small_splits import Shares

_FEW = 30  # with more patients, or sites, folds stay as they are, as in earlier versions
_NEAR = 0.1  # a share of the tiles that is this near to the requested one is accepted


@dataclass(frozen=True)
class Split:
    """Tile ids for training, validation and, in a three-way split, the test; and the patients that are held out.

    A patient here is the tiles' group: see `with_groups` for splits by case or by a patient's day. `inner` is the share
    of the training patients that watches the training instead of the validation images (`with_inner_share`); `train`
    does not contain it.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    held_out_groups: tuple[str, ...]
    test: tuple[str, ...] = ()
    test_groups: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    inner_groups: tuple[str, ...] = ()

    @property
    def sides(self) -> dict[str, tuple[str, ...]]:
        """The ids of each side, by its name in messages."""
        return {"training": self.train, "validation": self.val, "the test": self.test, "the inner share": self.inner}

    def apply(self, folder: Dataset) -> tuple[Dataset, Dataset]:
        """(training folder, validation folder); all sides, the test and the inner share too, are checked to share no
        patient and no site."""
        tiles = {name: folder.subset(ids).tiles for name, ids in self.sides.items()}
        for one, other in combinations(tiles, 2):
            check_no_leak(tiles[one], tiles[other], (one, other))
        return folder.subset(self.train), folder.subset(self.val)

    def test_of(self, folder: Dataset) -> Dataset:
        """The test folder; empty in a split without one."""
        return folder.subset(self.test)

    def inner_of(self, folder: Dataset) -> Dataset:
        """The inner share; empty in a split without one."""
        return folder.subset(self.inner)


def check_no_leak(
    train: Iterable[Tile], val: Iterable[Tile], sides: tuple[str, str] = ("training", "validation")
) -> None:
    """Raise ValueError if patients, or sites, have tiles on both sides; it names them."""
    train, val = list(train), list(val)
    shared = _shared((tile.group for tile in train), (tile.group for tile in val))
    if shared:
        raise ValueError(
            f"{len(shared)} patient(s) are in {sides[0]} and in {sides[1]}: {few(shared, 5)}; "
            "split by patient, see grouped_split"
        )
    shared = _shared((tile.site for tile in train), (tile.site for tile in val))
    if shared:
        raise ValueError(
            f"{len(shared)} site(s) are in {sides[0]} and in {sides[1]}: {few(shared, 5)}; draw the split by site "
            "(data.folds or data.val_fraction, without a split file or column), or unset data.site"
        )


def _shared(one: Iterable[str], other: Iterable[str]) -> list[str]:
    """Names of both, in any spelling; "" is none."""
    first, second = ({identifier_key(name): name for name in set(names) if name} for names in (one, other))
    return sorted(first[key] for key in first.keys() & second.keys())


def split_by_groups(
    folder: Dataset, groups: Iterable[str], test_groups: Iterable[str] = (), inner_groups: Iterable[str] = ()
) -> Split:
    """Hold out the patients `groups` for validation, `test_groups` for the test and `inner_groups` for the inner share,
    each named in any spelling.

    Raises:
        ValueError: a patient is not in the folder or on two lists, or training or validation would be empty.
    """
    lists = {"groups": groups, "test_groups": test_groups, "inner_groups": inner_groups}
    asked = {name: {identifier_key(str(one)): str(one) for one in listed} for name, listed in lists.items()}
    known = {name: identifier_key(name) for name in {tile.group for tile in folder.tiles}}
    every = {key: name for listed in asked.values() for key, name in listed.items()}
    unknown = sorted(name for key, name in every.items() if key not in known.values())
    if unknown:
        raise ValueError(f"`groups` names {len(unknown)} patient(s) not in {folder.root}, first {unknown[0]!r}")
    for one, other in combinations(asked, 2):
        if both := asked[one].keys() & asked[other].keys():
            raise ValueError(f"`{one}` and `{other}` both name {min(asked[one][key] for key in both)!r}")
    sides: dict[str, list[Tile]] = {"train": [], **{name: [] for name in asked}}
    for tile in folder.tiles:
        key = known[tile.group]
        sides[next((name for name, listed in asked.items() if key in listed), "train")].append(tile)
    train, val, test, inner = (tuple(tile.id for tile in side) for side in sides.values())
    if not train or not val:
        raise ValueError(f"`groups` leaves {len(train)} training, {len(val)} validation tiles; both need some")
    _, held_out, tested, watching = (tuple(sorted({tile.group.upper() for tile in side})) for side in sides.values())
    return Split(train, val, held_out, test, tested, inner, watching)


def split_by_column(folder: Dataset) -> Split | None:
    """The split in a manifest's column `split`; None when no tile has one.

    Raises:
        ValueError: a tile without a side, training or validation empty, or a patient on two sides.
    """
    given = [tile.values.get("split") for tile in folder.tiles]
    if not any(given):
        return None
    for tile, side in zip(folder.tiles, given, strict=True):
        if side not in ("train", "val", "test"):
            raise ValueError(f"{folder.root}: tile {tile.id} has no split; expected train, val or test, got {side!r}")
    sides = [
        tuple(tile for tile, side in zip(folder.tiles, given, strict=True) if side == wanted)
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

    Where tiles have a site (`with_sites`), whole sites are held out.

    Args:
        folder: what to split.
        val_fraction: share for validation.
        seed: of the draw.
        test_fraction: share for the test; 0 for none. 0.2 and 0.1 give 70 / 20 / 10.
        stratify: label column whose classes should be on all sides; "" is the tiles' own label.

    Raises:
        ValueError: fractions out of range, an unknown column, or too few patients.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"`val_fraction` must be between 0 and 1; got {val_fraction}")
    if test_fraction != 0 and not 0 < test_fraction < 1 - val_fraction:
        raise ValueError(f"`test_fraction` must be between 0 and 1 - val_fraction; got {test_fraction}")
    sides, units = 3 if test_fraction else 2, Units(folder)
    if len(units) < sides:
        asked = f"val_fraction {val_fraction:g}" + (f" and test_fraction {test_fraction:g}" if test_fraction else "")
        raise ValueError(f"{folder.root} has {_found(units)}, and {asked} needs {sides} or more")
    if not test_fraction:
        return split_by_groups(folder, _share(folder, val_fraction, seed, stratify, sides))
    test = _share(folder, test_fraction, seed, stratify, sides)
    tested = set(map(identifier_key, test))
    rest = replace(folder, tiles=tuple(tile for tile in folder.tiles if identifier_key(tile.group) not in tested))
    return split_by_groups(folder, _share(rest, val_fraction / (1 - test_fraction), seed, stratify, 2), test)


def with_inner_share(folder: Dataset, split: Split, fraction: float, seed: int = 0, *, stratify: str = "") -> Split:
    """The split with about this fraction of its training tiles, whole patients at a time, as the inner share.

    Args:
        folder: what `split` splits.
        split: without an inner share.
        fraction: of the training tiles.
        seed: of the draw.
        stratify: label column whose classes should be on both sides; "" is the tiles' own label.

    Raises:
        ValueError: the fraction is out of range, an unknown column, or the training tiles are of one patient or site.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`inner_fraction` must be between 0 and 1; got {fraction}")
    rest = folder.subset(split.train)
    if len(units := Units(rest)) < 2:
        raise ValueError(f"{folder.root} has one training {units.noun}, and an inner share needs 2 or more")
    share = _share(rest, fraction, seed, stratify, 2)
    return split_by_groups(folder, split.held_out_groups, split.test_groups, share)


def kfold(folder: Dataset, num_folds: int = 5, seed: int = 0, *, stratify: str = "") -> list[Split]:
    """`num_folds` splits; every patient is held out in exactly one, and so is every site (`with_sites`).

    Raises:
        ValueError: fewer than 2 folds, more folds than patients or sites, or an unknown column.
    """
    folds = _held_out_per_fold(folder, Units(folder), num_folds, seed, _labels(folder, stratify))
    return [split_by_groups(folder, fold) for fold in folds]


def published_fold(folder: Dataset, number: int) -> tuple[Split, str]:
    """The split of one of the data set's own folds, from 0, and the fold's name.

    Raises:
        ValueError: a patient is on both sides, or one side is empty.
    """
    name = list(folder.folds)[number]
    sides: tuple[list[Tile], list[Tile]] = ([], [])
    for tile in folder.tiles:
        sides[tile.id in folder.folds[name]].append(tile)
    if not all(sides):
        raise ValueError(
            f"{folder.root}: fold {name} has {len(sides[0])} training, {len(sides[1])} held-out tiles; both need some"
        )
    train, val = (tuple(tile.id for tile in side) for side in sides)
    split = Split(train, val, tuple(sorted({tile.group.upper() for tile in sides[1]})))
    split.apply(folder)
    return split, name


def _share(folder: Dataset, fraction: float, seed: int, stratify: str, sides: int) -> list[str]:
    """The patients of about this fraction of the tiles: the first folds, or a better selection if patients or sites are
    few."""
    units = Units(folder)
    most = max(2, min(20, len(units)))  # folds that there are units for
    share = Fraction(fraction).limit_denominator(most)
    if share in (0, 1):
        share = Fraction(1, most) if share == 0 else Fraction(most - 1, most)
    labels = _labels(folder, stratify)
    try:
        folds = _held_out_per_fold(folder, units, share.denominator, seed, labels)
        first = [group for fold in folds[: share.numerator] for group in fold]
    except ValueError:  # no class has as many images as there are folds
        first = []
    if len(units) > _FEW and 0 < len(first) < len(folder.groups):
        return first
    held_out = set(first)
    of_first = sorted({unit for unit, group in zip(units.of_tiles, units.groups, strict=True) if group in held_out})
    shares = Shares(labels, units.of_tiles, fraction, sides)

    def faults(held_out: list[str]) -> tuple[int, float]:
        lacking, off = shares.faults(held_out)
        return lacking, max(0.0, off - _NEAR)

    if faults(of_first) == (0, 0):
        return first
    return units.groups_of(min(of_first, shares.draw(seed), key=faults))


def _held_out_per_fold(
    folder: Dataset, units: Units, num_folds: int, seed: int, labels: Sequence[int]
) -> list[list[str]]:
    """The patients that each fold holds out."""
    if num_folds < 2 or num_folds > len(units):
        raise ValueError(
            f"{num_folds} folds need 2 or more, and as many {units.noun}s; {folder.root} has {_found(units)}"
        )
    if units.noun == "site":
        return [units.groups_of(fold) for fold in balanced_folds(labels, units.groups, units.of_tiles, num_folds, seed)]
    model_selection = require("sklearn.model_selection", "splitting by patient")
    splitter = model_selection.StratifiedGroupKFold(n_splits=num_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer tiles than folds cannot be in every fold; the others are still stratified.
        warnings.filterwarnings("ignore", message="The least populated class")
        try:
            parts = [val for _, val in splitter.split(labels, labels, units.groups)]
        except ValueError as error:
            raise ValueError(
                f"{folder.root} cannot be split into {num_folds} folds: {error} Take fewer folds, or val_fraction."
            ) from error
    return [sorted({units.groups[i] for i in part}) for part in parts]


def _found(units: Units) -> str:
    return units.in_words() if units.noun == "site" else f"{len(units)} patient(s)"


def _labels(folder: Dataset, column: str) -> list[int]:
    if column not in ("", "label") and column not in folder.classes:
        raise ValueError(f"`stratify` must name a label column; {nearest(column, ['label', *folder.classes])}")
    found = [label_of(tile, column) for tile in folder.tiles]
    return [-1 if label is None else label for label in found]


def one_sided_classes(
    folder: Dataset, train: Dataset, val: Dataset, column: str = "", noun: str = "class"
) -> list[str]:
    """A line for each class of a label column that exists in the folder but not in training or validation; `noun` is
    what the classes are."""
    lines = []
    for index, name in enumerate(folder.names_of(column)):
        everywhere, trained, held_out = (
            {tile.group for tile in side.tiles if label_of(tile, column) == index} for side in (folder, train, val)
        )
        if everywhere and not (trained and held_out):
            where = "training: it cannot be learned" if not trained else "validation: no score measures it"
            lines.append(f"{noun} {name!r}, of {counted(len(everywhere), 'patient')}, has no image in {where}")
    return lines
