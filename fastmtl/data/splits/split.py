"""A split into sides that share no patient and no site, and splits that are given: by patients, a column, or folds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

from ...utils.words import counted, few
from ..dataset import Dataset, Tile, label_of
from ..identifiers import identifier_key


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
