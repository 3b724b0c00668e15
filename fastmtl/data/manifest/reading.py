"""Manifests: tables with one row per tile, region of a slide, or whole slide.

Columns with a fixed meaning; all others are free (see `read_manifest`):

    id          unique name; without this column the image's path, or slide@x_y
    image       an image file, or another picture (see `fastmtl.data.manifest.picture_refs`)
    slide       a file or a URL; with x, y, width, height (level-0 corner; size at `level` or `mpp`): a region; without:
                the whole slide, and `mpp` is then that of its level 0, where the file gives none or a wrong one
    mask        a picture of the same field of view
    label       the class
    patient     what a split must keep together; or `group`, where that is not the patient
    case, position    a specimen and the place of a slice in it, for samplers of neighbouring pairs
    split       "train", "val" or "test"

An empty cell means that the sample has no label for that task.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from ..dataset import Dataset, ImageSource, Problem, Region, Tile, with_one_spelling
from ..identifiers import clean_name, sample_key, says_missing
from ..images.arrays import ArrayRow
from ..images.pictures import file_of, picture_size
from ..patient_names import PATIENT, group_of, name_notices, one_spelling, rule_in_words
from ..slides.grid import GridOptions
from ..slides.opened import UnreadableSlideError, damage_of
from . import column_types as cells_of
from .annotated_areas import AnnotatedAreas
from .class_spellings import merged_spellings
from .column_names import REGION, RESERVED, check_names
from .column_types import KINDS, Kind
from .path_rule import PathRule
from .picture_refs import PolygonOptions, read_picture, slide_name
from .polygon_notices import polygon_notices
from .shared_files import rows_that_share
from .slide_rows import grid_regions, is_region, manifest_mpp, read_region
from .table_io import TextTable, read_table

_KINDS: dict[str, Kind] = {"mask": "picture", "label": "label", "case": "text", "position": "number", "split": "text"}
_GROUPS = ("group", "patient", "case")  # a split keeps together what the first of these columns names
SPLITS = ("train", "val", "test")
_SAYS_MISSING = ("nan", "na", "n/a", "null")


@dataclass(frozen=True)
class ManifestOptions:
    """How to read a manifest.

    Attributes:
        columns: column -> kind, to override `fastmtl.data.manifest.column_types.infer_kind`.
        classes: label column -> its classes in order; sorted if not given.
        labels: columns that tasks use as classes: whole numbers such as grades are classes in them.
        root: folder that must contain all paths; None is the manifest's own folder.
        patient: finds the patient in a file name if there is no column of patients, see `group_of`.
        grid: how to cut whole slides.
        polygons: how to draw polygons.
    """

    columns: Mapping[str, str] | None = None
    classes: Mapping[str, Sequence[str]] | None = None
    labels: Collection[str] = ()
    root: Path | None = None
    patient: str = PATIENT
    grid: GridOptions = field(default_factory=GridOptions)
    polygons: PolygonOptions = field(default_factory=PolygonOptions)


def read_manifest(path: str | Path, options: ManifestOptions | None = None) -> Dataset:
    """The data set that a CSV or Parquet manifest describes; opens no image.

    Free columns become `Tile.values` under their names: numbers, class indices (with the names in `Dataset.classes`),
    boxes (centre x, centre y, width, height in shares of the image), vectors, pictures, or text. A column whose name
    is a slip of a missing one above is an error: with `patients`, data would silently be split by file name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the content is wrong; the message is one line that names the manifest, the line and the column.
    """
    return _Reader(read_table(Path(path)), options or ManifestOptions()).read()


class _Reader:
    """Reads one manifest."""

    def __init__(self, table: TextTable, options: ManifestOptions):
        folder = table.path.parent
        self.table, self.options = table, options
        self.rule = PathRule(folder, options.root or folder)
        lowered = {name: name.lower() for name in table.names}
        self.names = tuple(low if (low := lowered[name]) in RESERVED else name for name in table.names)
        self.column = {name: tuple(row[at] for row in table.rows) for at, name in enumerate(self.names)}
        check_names(table, self.names, {*(options.columns or {}), *(options.classes or {})})
        self.odd = [problem for name in _GROUPS if name in self.column for problem in self._one_spelling(name)]
        free = [name for name in self.names if name in _KINDS or name not in RESERVED]
        self.kinds: dict[str, Kind] = {name: self._kind(name) for name in free}
        if "patient" in self.names and "group" in self.names:
            self.kinds["patient"] = "text"
        given = options.classes or {}
        self.classes = {
            name: cells_of.class_names(name, table, self.column[name], given.get(name))
            for name, kind in self.kinds.items()
            if kind == "label"
        }
        self.mpp = manifest_mpp(table, self.rule)
        self.seen: dict[str, int] = {}
        self.regions_of: set[Path] = set()
        self.blank: list[Path] = []
        self.annotated = AnnotatedAreas(self.options.polygons)

    def read(self) -> Dataset:
        tiles = [tile for row in range(len(self.table.rows)) for tile in self._tiles(row)]
        if not tiles:
            raise ValueError(f"{self.table.path}: {self._no_tile(self.blank[0])}")
        classes = dict(self.classes)
        label = classes.pop("label", ())
        groups = next((column for column in _GROUPS if column in self.column), None)
        how = f"column {groups}" if groups else rule_in_words(self.options.patient)
        dataset = Dataset(self.table.path, label, tuple(tiles), self._notices(tiles), classes, how, self.mpp)
        return dataset if groups else with_one_spelling(dataset)

    def _one_spelling(self, name: str) -> list[Problem]:
        """Give each name in a column one spelling; notices of what was merged."""
        filled = [cell for cell in self.column[name] if cell]
        chosen = one_spelling(filled)
        self.column[name] = tuple(chosen.get(cell, cell) for cell in self.column[name])
        return [Problem(self.table.path, reason) for reason in name_notices(filled, name, "row")]

    def _tiles(self, row: int) -> list[Tile]:
        """The row's tile, or all tiles of a whole slide."""
        place = self.table.place(row)
        cells = {name: column[row] for name, column in self.column.items() if column[row]}
        for column in ("id", "image", "slide", "mask", *_GROUPS):
            if says_missing(cell := cells.get(column, "some")):
                cure = "name the patient" if column in _GROUPS else "leave the cell empty if there is none"
                raise ValueError(f"{place}: {column} is {cell!r}, which is not a name; {cure}")
        if ("image" in cells) == ("slide" in cells):
            raise ValueError(f"{place}: a row needs an image or a slide, and not both")
        if "image" in cells:
            image = read_picture(cells["image"], self.rule, place)
            text = cells["image"] if "\\" in file_of(image).as_posix() else cells["image"].replace("\\", "/")
            name = text if isinstance(image, ArrayRow) else text.rpartition(".")[0] or text
            return [self._tile(row, cells, image, cells.get("id", name), place)]
        slide = self.rule.slide(cells["slide"], place)
        if is_region(cells):
            region = read_region(slide, cells, place, self.mpp.get(slide))
            self.regions_of.add(slide)
            name = f"{slide_name(cells['slide'], slide)}@{region.x}_{region.y}"
            return [self._tile(row, cells, region, cells.get("id", name), place)]
        name = cells.get("id", slide_name(cells["slide"], slide))
        try:
            regions = grid_regions(slide, self.options.grid, place, self.mpp.get(slide))
        except UnreadableSlideError:
            # One tile stands for the slide, without pictures that would open it: `check_tiles` reports it as damaged.
            side = self.options.grid.tile_size
            cells = {column: cell for column, cell in cells.items() if self.kinds.get(column) != "picture"}
            return [self._tile(row, cells, Region(slide, 0, 0, side, side), name, place)]
        if not regions:
            self.blank.append(slide)
        self.odd += [Problem(slide, reason) for reason in damage_of(slide, self.mpp.get(slide))]
        return [
            self._tile(row, cells, region, f"{name}@{region.x}_{region.y}", place, whole_slide=True)
            for region in regions
        ]

    def _tile(
        self, row: int, cells: Mapping[str, str], image: ImageSource, name: str, place: str, whole_slide: bool = False
    ) -> Tile:
        key = sample_key(name) if "id" in cells else clean_name(os.path.normpath(name))
        first = self.seen.setdefault(key, row)
        if first != row:
            where = self.table.lines[first]
            raise ValueError(f"{place}: the id {name!r} is that of line {where} already; ids must be distinct")
        found = {column: self._value(column, cells, image, place, whole_slide) for column in self.kinds}
        values = {column: value for column, value in found.items() if value is not None}
        mask, label = values.pop("mask", None), values.pop("label", None)
        return Tile(name, image, mask, label, self._group(cells, place), values)

    def _value(self, column: str, cells: Mapping[str, str], image: ImageSource, place: str, whole_slide: bool) -> Any:
        cell, kind = cells.get(column, ""), self.kinds[column]
        if kind != "picture":
            value = cells_of.parse_cell(kind, cell, column, place, self.classes.get(column, ()))
            if column == "split" and isinstance(value, str) and (value := value.lower()) not in SPLITS:
                raise ValueError(f"{place}: split must be train, val or test; got {cell!r}")
            if kind == "pixel_box" and isinstance(value, tuple):
                try:
                    return cells_of.box_of_pixels(value, *picture_size(image))
                except OSError:  # `check_tiles` names the image, and a recipe may skip such tiles
                    return None
            return value
        if not cell:
            return None
        polygons = self.options.polygons
        picture = read_picture(cell, self.rule, place, over=image, whole_slide=whole_slide, polygons=polygons)
        return picture if self.annotated.has_label(picture) else None

    def _group(self, cells: Mapping[str, str], place: str) -> str:
        for column in _GROUPS:
            if column in self.column:
                if column not in cells:
                    raise ValueError(f"{place}: {column} is empty; a split could not keep its tiles together")
                return cells[column]
        return group_of(cells.get("image") or cells["slide"], self.options.patient)

    def _kind(self, name: str) -> Kind:
        given = dict.fromkeys(self.options.classes or {}, "label") | dict(self.options.columns or {})
        if name in given:
            if given[name] not in KINDS:
                raise ValueError(f"the kind of column {name!r} must be one of {', '.join(KINDS)}; got {given[name]!r}")
            return cast(Kind, given[name])
        kind = _KINDS.get(name) or cells_of.infer_kind(name, self.column[name])
        may_be_classes = kind == "number" and name in self.options.labels and cells_of.are_classes(self.column[name])
        return "label" if may_be_classes else kind

    def _notices(self, tiles: Sequence[Tile]) -> tuple[Problem, ...]:
        path, kinds = self.table.path, self.kinds.items()
        given = {*(self.options.columns or {}), *(self.options.classes or {})}
        lines = self.table.lines
        inferred = (name for name, kind in kinds if name not in RESERVED and (kind == "text" or name not in given))
        reasons = [cells_of.why_no_number(name, self.kinds[name], self.column[name], lines) for name in inferred]
        reasons += (cells_of.why_commas(name, kind, self.column[name]) for name, kind in kinds if name not in given)
        reasons += (cells_of.why_sentinel(name, self.column[name]) for name, kind in kinds if kind == "number")
        reasons += (
            f"column {name!r} has a class {label!r}, which is learned as any other; leave cells empty where nobody "
            "labelled"
            for name, labels in self.classes.items()
            for label in labels
            if label.lower() in _SAYS_MISSING
        )
        for name, original in zip(self.names, self.table.names, strict=True):
            if name in self.classes:
                reasons += merged_spellings(name, self.table.written(original), partial(self._class_of, name))
        left_out = (Problem(slide, f"left out: {self._no_tile(slide)}") for slide in self.blank)
        return (
            *(Problem(path, reason) for reason in reasons if reason),
            *left_out,
            *dict.fromkeys([*self.odd, *self._damage_of_region_slides()]),
            *(Problem(path, reason) for reason in self._ignored_cells()),
            *rows_that_share(tiles, path),
            *self.annotated.notices(path),
            *polygon_notices(tiles),
        )

    def _damage_of_region_slides(self) -> list[Problem]:
        """Problems of slides that rows name regions of; `check_tiles` reports those that cannot be opened."""
        found = []
        for slide in sorted(self.regions_of):
            with suppress(UnreadableSlideError):
                found += [Problem(slide, reason) for reason in damage_of(slide, self.mpp.get(slide))]
        return found

    def _ignored_cells(self) -> list[str]:
        """Cells that are ignored in their row."""
        found = [
            f"column {name!r} is for slides only; it is ignored on rows with an image"
            for name in REGION
            if self._both("image", name)
        ]
        if "x" not in self.column and self._both("slide", "level"):
            found.append("column 'level' is for regions; it is ignored for whole slides, which data.mpp cuts")
        return found

    def _both(self, one: str, other: str) -> bool:
        """Whether a row has a cell in both columns."""
        return any(map(all, zip(self.column.get(one, ()), self.column.get(other, ()), strict=False)))

    def _class_of(self, name: str, cell: str) -> str:
        index = cells_of.parse_cell("label", cell, name, str(self.table.path), self.classes[name])
        return self.classes[name][cast(int, index)]

    def _no_tile(self, slide: Path) -> str:
        grid = self.options.grid
        return (
            f"{slide.name} gives no tile of {grid.tile_size} pixels with {grid.min_tissue:.0%} tissue; lower "
            "data.min_tissue or data.tile_size where it has any"
        )
