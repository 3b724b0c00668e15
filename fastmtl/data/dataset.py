"""A data set in memory: tiles, their labels and values, and the patients that a split must keep together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .identifiers import sample_key
from .patient_names import name_notices, one_spelling

BACKGROUND = 240
"""Grey level outside a slide or a tile and of unscanned parts: that of empty glass, which stain estimation excludes."""


@dataclass(frozen=True)
class Problem:
    """A file with the reason why it cannot be used, or an oddity."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Region:
    """A rectangle of a slide.

    Attributes:
        slide: the slide's file.
        x: left edge, level-0 pixels; pixels outside the slide are `BACKGROUND`.
        y: top edge, likewise.
        width: pixels of `level`.
        height: likewise.
        level: of the slide's pyramid; 0 is the finest.
    """

    slide: Path
    x: int
    y: int
    width: int
    height: int
    level: int = 0


class Drawn(Protocol):
    """Pixels that are computed on demand: from polygons, run-length codes, HDF5 arrays, 16-bit grey.

    Equal values must draw equal pixels, also in another process.
    """

    def draw(self) -> NDArray[np.uint8]:
        """uint8 [h, w] or [h, w, C], the tile's whole field of view at any resolution; C = 3 is RGB for an image."""
        ...


ImageSource = Path | Region | Drawn


@dataclass(frozen=True)
class Tile:
    """One image with its labels and values.

    Attributes:
        id: unique and readable, for example "Polyp/GT2012149-2-400-001".
        image: an image file, a region of a slide, or a `Drawn`.
        mask: of the image's field of view, 8-bit grey; None if there is none.
        label: class index; None if unknown.
        group: the patient; a split keeps it together.
        values: further columns by name: pictures, class indices (int), numbers, boxes and vectors (tuples of float);
            None or absent if unknown.
        site: the hospital or laboratory that it comes from; a split keeps it together too. "" where sites do not count
            (see `with_sites`).
    """

    id: str
    image: ImageSource
    mask: ImageSource | None
    label: int | None
    group: str
    values: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)
    site: str = ""


def label_of(tile: Tile, column: str) -> int | None:
    """The tile's class in a label column; "" and "label" are its own."""
    label = tile.label if column in ("", "label") else tile.values.get(column)
    return label if isinstance(label, int) else None


def kind_of(value: object) -> Literal["vector", "text", "number", "picture"]:
    """What a value of `Tile.values` is; class indices are numbers too."""
    if isinstance(value, tuple):
        return "vector"
    if isinstance(value, str):
        return "text"
    return "number" if isinstance(value, int | float) else "picture"


def maps_of(tile: Tile) -> list[tuple[str, ImageSource]]:
    """(column, picture) of the tile's own mask and of each further column of pictures."""
    columns = {"mask": tile.mask, **tile.values}
    return [(name, value) for name, value in columns.items() if value is not None and kind_of(value) == "picture"]


@dataclass(frozen=True)
class Dataset:
    """Tiles ordered by id.

    Attributes:
        root: the folder or manifest that was read.
        class_names: of the tiles' `label`, in label order.
        tiles: the samples.
        problems: files without a tile, unusable files, and oddities of the data.
        classes: class names of further label columns.
        patients_from: the source of the groups, in words: "column patient", "file name (...)".
        slide_mpp: micrometres per pixel of level 0, if the data set overrides the slide's file.
        folds: the data set's own folds for cross-validation: name -> ids of the tiles that the fold holds out. Every
            tile is in one; empty if the data set has no folds.
    """

    root: Path
    class_names: tuple[str, ...]
    tiles: tuple[Tile, ...]
    problems: tuple[Problem, ...] = ()
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    patients_from: str = field(default="", compare=False)
    slide_mpp: Mapping[Path, float] = field(default_factory=dict[Path, float], compare=False)
    folds: Mapping[str, frozenset[str]] = field(default_factory=dict[str, "frozenset[str]"])

    def __len__(self) -> int:
        return len(self.tiles)

    @property
    def groups(self) -> tuple[str, ...]:
        """The distinct patients, sorted; each in one spelling."""
        return tuple(sorted(set(one_spelling(tile.group for tile in self.tiles).values())))

    def names_of(self, column: str) -> tuple[str, ...]:
        """The classes of a label column, in order; "" and "label" are the tiles' own."""
        return self.class_names if column in ("", "label") else self.classes.get(column, ())

    def subset(self, ids: Iterable[str]) -> Dataset:
        """The tiles with these ids, in the data set's order; other spellings of an id count.

        Raises:
            ValueError: an id is not in this data set.
        """
        wanted, there = set(ids), {tile.id for tile in self.tiles}
        if other := wanted - there:
            spelled = {sample_key(name): name for name in there}
            wanted = (wanted & there) | {spelled.get(sample_key(name), name) for name in other}
        unknown = sorted(wanted - there)
        if unknown:
            raise ValueError(f"`ids` has {len(unknown)} not in {self.root}, first {unknown[0]!r}; was it made for it?")
        return replace(self, tiles=tuple(tile for tile in self.tiles if tile.id in wanted))


def class_counts(dataset: Dataset) -> dict[str, dict[str, dict[str, int]]]:
    """Label column ("label" is the tiles' own) -> class -> {"tiles", "patients"}; classes without tiles included."""
    columns = ["label"] * bool(dataset.class_names) + list(dataset.classes)
    found: dict[str, dict[str, dict[str, int]]] = {}
    for column in columns:
        names = dataset.names_of(column)
        of: list[list[Tile]] = [[] for _ in names]
        for tile in dataset.tiles:
            if (label := label_of(tile, column)) is not None:
                of[label].append(tile)
        found[column] = {
            name: {"tiles": len(own), "patients": len({tile.group for tile in own})}
            for name, own in zip(names, of, strict=True)
        }
    return found


def with_one_spelling(dataset: Dataset) -> Dataset:
    """The same tiles, each patient in one spelling; notices name merged spellings (see `identifiers`)."""
    groups = [tile.group for tile in dataset.tiles]
    chosen = one_spelling(groups)
    notices = [Problem(dataset.root, reason) for reason in name_notices(groups, "patient", "tile")]
    fresh = [notice for notice in notices if notice not in dataset.problems]
    tiles = tuple(
        tile if chosen[tile.group] == tile.group else replace(tile, group=chosen[tile.group]) for tile in dataset.tiles
    )
    return replace(dataset, tiles=tiles, problems=(*dataset.problems, *fresh))
