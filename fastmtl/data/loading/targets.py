"""Targets, `has_label` and metadata of a batch, from the columns of its tiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...protocols import MAPS, Target
from ..dataset import ImageSource, Tile
from .augment import Parameters
from .boxes import move_boxes
from .tile_sets import TileSets

NO_LABEL = -100
"""Class index of a sample without a label: torch's losses ignore it by default."""
NO_PARTNER = -1
_KINDS = get_args(get_type_hints(Target)["kind"])


@dataclass(frozen=True)
class MapColumn:
    """A column of masks or class maps, which follow the image's geometry."""

    kind: str
    column: str
    size: int
    sets: frozenset[int] | None = field(default=None, compare=False)  # whose tiles have it; None: all

    @property
    def is_grey(self) -> bool:
        """Whether files are decoded to one channel."""
        return self.kind != "masks"

    def of(self, tile: Tile) -> ImageSource | None:
        """The tile's picture."""
        if self.sets is not None and tile.label not in self.sets:
            return None
        return tile.values.get(self.column) if self.column else tile.mask


class Columns:
    """The columns of the tiles from which targets and metadata are read.

    Args:
        targets: task name -> `Target` or its kind.
        metadata: name in `Batch.metadata` -> columns.
        sets: of the tiles; a tile has no label for tasks that its set lacks.

    Raises:
        ValueError: an unknown kind, a size below 1, or a missing column for a kind that needs one.
    """

    def __init__(
        self,
        targets: Mapping[str, Target | str],
        metadata: Mapping[str, Sequence[str]],
        sets: TileSets | None = None,
    ):
        self.sets = sets
        self.targets = {name: _target(name, target) for name, target in targets.items()}
        if not self.targets:
            raise ValueError("`targets` is empty; name at least one task")
        self.metadata = {name: tuple(columns) for name, columns in metadata.items()}
        for name, columns in self.metadata.items():
            if isinstance(metadata[name], str) or not columns:
                raise ValueError(f"`metadata` must map {name!r} to a list of columns; got {metadata[name]!r}")
        having: dict[MapColumn, set[int]] = {}  # the sets with a task that learns from the map
        for name, target in self.targets.items():
            if target.kind in MAPS:
                own = having.setdefault(MapColumn(target.kind, target.column, target.size), set())
                own.update([] if sets is None else np.flatnonzero(sets.has_task(name)).tolist())
        self.maps = tuple(
            MapColumn(one.kind, one.column, one.size, None if sets is None else frozenset(own))
            for one, own in having.items()
        )
        of_targets = [target.column for target in self.targets.values()]
        self.named = sorted({*of_targets, *(column for columns in self.metadata.values() for column in columns)})

    def read(self, tiles: Sequence[Tile]) -> ColumnValues:
        """The values of all tiles; ValueError for a value of the wrong type."""
        return ColumnValues(self, tiles)


class ColumnValues:
    """The columns of a set of tiles as arrays, from which batches are gathered."""

    def __init__(self, columns: Columns, tiles: Sequence[Tile]):
        self._columns = columns
        self._values: dict[str, NDArray] = {}
        has_label = []
        for name, target in columns.targets.items():
            values, has = _read(target, tiles)
            self._values[name] = values
            has_label.append(has)
        self._has_label = np.stack(has_label, 1)
        if (sets := columns.sets) is not None:
            numbers = sets.numbers(tiles)
            self._has_label &= np.stack([sets.has_task(name)[numbers] for name in columns.targets], 1)
        self._metadata = {
            name: np.stack([_numbers(tiles, column)[0] for column in names], 1).astype(np.float32)
            for name, names in columns.metadata.items()
        }

    def gather(
        self, rows: NDArray[np.int64], partners: NDArray[np.int64], drawn: Parameters, maps: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """Targets, `has_label` and metadata of the samples `rows`, on the device of `maps` or else the CPU.

        Args:
            rows: int64 [B], numbers of tiles.
            partners: int64 [B], rows of the batch, -1 for none.
            drawn: the augmentation of the images.
            maps: one tensor for each of the columns' `maps`.
        """
        by_map = dict(zip(self._columns.maps, maps, strict=True))
        has_label = self._has_label[rows]
        targets: dict[str, Tensor] = {}
        for number, (name, target) in enumerate(self._columns.targets.items()):
            if target.kind in MAPS:
                targets[name] = by_map[MapColumn(target.kind, target.column, target.size)]
            elif target.kind == "box":
                boxes, has_label[:, number] = move_boxes(self._values[name][rows], drawn)
                targets[name] = torch.from_numpy(boxes)
            elif target.kind == "pair":
                targets[name] = torch.from_numpy(partners.copy())
                has_label[:, number] = partners != NO_PARTNER
            elif target.kind != "none":
                targets[name] = torch.from_numpy(self._values[name][rows])
        metadata = {name: torch.from_numpy(values[rows]) for name, values in self._metadata.items()}
        return targets, torch.from_numpy(has_label), metadata


def _target(name: str, target: Target | str) -> Target:
    target = Target(target) if isinstance(target, str) else target  # type: ignore[arg-type]
    if target.kind not in _KINDS:
        raise ValueError(f"`targets` gives {name!r} the kind {target.kind!r}; expected one of {', '.join(_KINDS)}")
    if target.size < 1 or (target.kind != "masks" and target.kind != "vector" and target.size != 1):
        raise ValueError(f"`targets` gives {name!r} the size {target.size}; expected 1, or more for masks and vector")
    if not target.column and target.kind in ("number", "vector", "box"):
        raise ValueError(f"`targets` gives {name!r} no column; a {target.kind} needs one")
    return target


def _read(target: Target, tiles: Sequence[Tile]) -> tuple[NDArray, NDArray[np.bool_]]:
    if target.kind in MAPS:
        column = MapColumn(target.kind, target.column, target.size)
        return np.zeros(0), np.array([column.of(tile) is not None for tile in tiles], bool)
    if target.kind == "label":
        labels = [tile.values.get(target.column) if target.column else tile.label for tile in tiles]
        for tile, label in zip(tiles, labels, strict=True):
            if label is not None and (isinstance(label, bool) or not isinstance(label, (int, np.integer))):
                raise ValueError(f"column {target.column!r} of tile {tile.id} must be a class index; got {label!r}")
        has = np.array([label is not None for label in labels], bool)
        return np.array([NO_LABEL if label is None else label for label in labels], np.int64), has
    if target.kind == "number":
        values, has = _numbers(tiles, target.column)
        return values.astype(np.float32), has
    if target.kind in ("vector", "box"):
        size = 4 if target.kind == "box" else target.size
        values = np.stack([_vector(tile, target.column, size) for tile in tiles])
        has = np.asarray(np.isfinite(values).all(1), bool)
        if target.kind == "vector":
            return np.where(has[:, None], values, 0).astype(np.float32), has
        return values, has
    return np.zeros(0), np.ones(len(tiles), bool)


def _numbers(tiles: Sequence[Tile], column: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """float64 [N], 0 for missing values, and bool [N], which values exist."""
    values = np.array([_number(tile, column, _value(tile, column)) for tile in tiles])
    return np.where(np.isnan(values), 0.0, values), ~np.isnan(values)


def _value(tile: Tile, column: str) -> object:
    """The tile's value; "label" is its own label if no column has that name."""
    return tile.values.get(column, tile.label if column == "label" else None)


def _vector(tile: Tile, column: str, size: int) -> NDArray[np.float64]:
    value = tile.values.get(column)
    if value is None:
        return np.full(size, np.nan)
    if not isinstance(value, (tuple, list, np.ndarray)) or len(value) != size:
        raise ValueError(f"column {column!r} of tile {tile.id} must be {size} numbers; got {value!r}")
    return np.array([_number(tile, column, number) for number in value])


def _number(tile: Tile, column: str, value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, str) or not isinstance(value, (int, float, np.number)) or math.isinf(value):
        raise ValueError(f"column {column!r} of tile {tile.id} must be a finite number; got {value!r}")
    return float(value)
