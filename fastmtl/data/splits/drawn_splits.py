"""Splits that are drawn: training, validation and test sets that share no patient.

Many patients have several tiles, some of several classes: a split by tile would test on patients of the training set.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from ...utils.optional_imports import require
from ...utils.suggestions import nearest
from ..dataset import Dataset, label_of
from ..identifiers import identifier_key
from .site_folds import balanced_folds
from .sites import Units
from .small_splits import Shares
from .split import Split, split_by_groups

_FEW = 30  # with more patients, or sites, folds stay as they are, as in earlier versions
_NEAR = 0.1  # a share of the tiles that is this near to the requested one is accepted


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
