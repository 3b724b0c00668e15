"""A table of samples that anybody can write: one row a tile, a region of a slide, or a whole slide.

Columns with a meaning of their own, all others are free (see `read_manifest`):

    id          unique name; the image's path, or slide@x_y, when there is no such column
    image       an image file, or another picture (`fastmtl.data.manifest.picture_refs` lists what a cell can say)
    slide       with x, y, width, height (level-0 corner; size at `level` or `mpp`): a region; without: the whole slide,
                and `mpp` is then that of its level 0, where the file does not say it or not rightly
    mask        a picture over the same field of view
    label       the class
    patient     whom a split must not divide; `group` instead of it, where that is something else
    case, position    a specimen and the place of a slice in it, for samplers of neighbouring pairs
    split       "train", "val" or "test"

An empty cell means that nobody labelled the sample for that task.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from ...utils.suggestions import nearest
from ..dataset import Dataset, ImageSource, Problem, Region, Tile, with_one_spelling
from ..identifiers import clean_name, sample_key, says_missing
from ..images.arrays import ArrayRow
from ..images.pictures import file_of, picture_size
from ..patient_names import PATIENT, group_of, name_notices, one_spelling, rule_in_words
from ..slides.grid import GridOptions
from ..slides.opened import UnreadableSlideError, damage_of
from . import column_types as cells_of
from .class_spellings import merged_spellings
from .column_types import KINDS, Kind
from .path_rule import PathRule
from .picture_refs import PolygonOptions, read_picture
from .shared_files import rows_that_share
from .slide_rows import grid_regions, is_region, manifest_mpp, read_region
from .table_io import TextTable, read_table

REGION = ("x", "y", "width", "height", "level", "mpp")
RESERVED = ("id", "image", "slide", *REGION, "mask", "label", "patient", "group", "case", "position", "split")
_KINDS: dict[str, Kind] = {"mask": "picture", "label": "label", "case": "text", "position": "number", "split": "text"}
_WHOM = ("group", "patient", "case")  # the first column that exists says what a split must not divide
SPLITS = ("train", "val", "test")
_SAYS_MISSING = ("nan", "na", "n/a", "null")


@dataclass(frozen=True)
class ManifestOptions:
    """How a manifest is read.

    Attributes:
        columns: column -> kind, where inferring it (`fastmtl.data.manifest.column_types.infer_kind`) would be wrong.
        classes: label column -> its classes in order; sorted where they are not given.
        labels: columns that tasks learn classes from: grades 1, 2 and 3 are classes there, and not numbers.
        root: folder that no path may leave; None is the manifest's own.
        patient: finds the patient in a file's name where no column says it, see `group_of`.
        grid: how whole slides are cut.
        polygons: how polygons are drawn.
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
    nearly is one of those above, which is then missing, is an error: `patients` would silently split by file name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: one line that names the manifest, the line and the column.
    """
    return _Reader(read_table(Path(path)), options or ManifestOptions()).read()


class _Reader:
    """One manifest on its way into a data set."""

    def __init__(self, table: TextTable, options: ManifestOptions):
        folder = table.path.parent
        self.table, self.options = table, options
        self.rule = PathRule(folder, options.root or folder)
        lowered = {name: name.lower() for name in table.names}
        self.names = tuple(low if (low := lowered[name]) in RESERVED else name for name in table.names)
        self.column = {name: tuple(row[at] for row in table.rows) for at, name in enumerate(self.names)}
        self._check_names()
        self.odd = [problem for name in _WHOM if name in self.column for problem in self._one_spelling(name)]
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

    def read(self) -> Dataset:
        tiles = [tile for row in range(len(self.table.rows)) for tile in self._tiles(row)]
        if not tiles:
            raise ValueError(f"{self.table.path}: {self._no_tile(self.blank[0])}")
        classes = dict(self.classes)
        label = classes.pop("label", ())
        told = next((column for column in _WHOM if column in self.column), None)
        how = f"column {told}" if told else rule_in_words(self.options.patient)
        dataset = Dataset(self.table.path, label, tuple(tiles), self._notices(tiles), classes, how, self.mpp)
        return dataset if told else with_one_spelling(dataset)

    def _one_spelling(self, name: str) -> list[Problem]:
        """Give each name in a column one spelling; says what was merged."""
        filled = [cell for cell in self.column[name] if cell]
        chosen = one_spelling(filled)
        self.column[name] = tuple(chosen.get(cell, cell) for cell in self.column[name])
        return [Problem(self.table.path, reason) for reason in name_notices(filled, name, "row")]

    def _tiles(self, row: int) -> list[Tile]:
        """One tile, or all of a whole slide's."""
        place = self.table.place(row)
        cells = {name: column[row] for name, column in self.column.items() if column[row]}
        for column in ("id", "image", "slide", "mask", *_WHOM):
            if says_missing(cell := cells.get(column, "some")):
                cure = "name the patient" if column in _WHOM else "leave the cell empty if there is none"
                raise ValueError(f"{place}: {column} is {cell!r}, which is not a name; {cure}")
        if ("image" in cells) == ("slide" in cells):
            raise ValueError(f"{place}: a row needs an image or a slide, and not both")
        if "image" in cells:
            image = read_picture(cells["image"], self.rule, place)
            text = cells["image"] if "\\" in file_of(image).as_posix() else cells["image"].replace("\\", "/")
            name = text if isinstance(image, ArrayRow) else text.rpartition(".")[0] or text
            return [self._tile(row, cells, image, cells.get("id", name), place)]
        slide = self.rule.resolve(cells["slide"], place)
        if is_region(cells):
            region = read_region(slide, cells, place, self.mpp.get(slide))
            self.regions_of.add(slide)
            name = f"{cells['slide'].rpartition('.')[0]}@{region.x}_{region.y}"
            return [self._tile(row, cells, region, cells.get("id", name), place)]
        name = cells.get("id", cells["slide"].rpartition(".")[0])
        try:
            regions = grid_regions(slide, self.options.grid, place, self.mpp.get(slide))
        except UnreadableSlideError:
            # One tile stands for it, without what would open it: whoever checks the tiles finds it among the damaged.
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
                except OSError:  # `check_tiles` names the image, and a recipe may leave such tiles out
                    return None
            return value
        if not cell:
            return None
        return read_picture(cell, self.rule, place, over=image, whole_slide=whole_slide, polygons=self.options.polygons)

    def _group(self, cells: Mapping[str, str], place: str) -> str:
        for column in _WHOM:
            if column in self.column:
                if column not in cells:
                    raise ValueError(f"{place}: {column} is empty; a split could not keep its tiles together")
                return cells[column]
        return group_of(cells.get("image") or cells["slide"], self.options.patient)

    def _kind(self, name: str) -> Kind:
        told = dict(self.options.columns or {}).get(name)
        if told is not None and told not in KINDS:
            raise ValueError(f"the kind of column {name!r} must be one of {', '.join(KINDS)}; got {told!r}")
        if told is None and name in (self.options.classes or {}):
            told = "label"
        if told is not None:
            return cast(Kind, told)
        kind = _KINDS.get(name) or cells_of.infer_kind(name, self.column[name])
        may_be_classes = kind == "number" and name in self.options.labels and cells_of.are_classes(self.column[name])
        return "label" if may_be_classes else kind

    def _check_names(self) -> None:
        path = self.table.path
        if "image" not in self.names and "slide" not in self.names:
            near = next((name for name in self.names if _is_slip(name, "image") or _is_slip(name, "slide")), None)
            hint = f"is {near!r} meant?" if near else f"its columns are {', '.join(self.table.names)}"
            raise ValueError(f"{path} has neither a column image nor a column slide; {hint}; rename the one of files")
        twice = [name for at, name in enumerate(self.names) if name in self.names[:at]]
        if twice:
            raise ValueError(f"{path} has two columns named {twice[0]!r}, apart from capitals")
        declared = {*(self.options.columns or {}), *(self.options.classes or {})}
        for name in sorted(declared - set(self.names)):
            raise ValueError(f"{path} has no column {name!r}; {nearest(name, self.names)}")
        for name in self.names:
            if name in RESERVED or name in declared:
                continue
            meant = [known for known in RESERVED if known not in self.names and _is_slip(name, known)]
            if meant:
                raise ValueError(
                    f"{path} has an unknown column {name!r}; if {meant[0]!r} is meant, rename it; if not, declare its "
                    f"kind ({', '.join(KINDS)})"
                )

    def _notices(self, tiles: Sequence[Tile]) -> tuple[Problem, ...]:
        from .polygon_notices import polygon_notices

        text = [name for name, kind in self.kinds.items() if kind == "text" and name not in RESERVED]
        notices = [Problem(self.table.path, cells_of.why_text(name, self.column[name])) for name in text]
        commas = (cells_of.why_commas(name, kind, self.column[name]) for name, kind in self._inferred())
        far = (cells_of.why_sentinel(name, self.column[name]) for name, kind in self.kinds.items() if kind == "number")
        notices += [Problem(self.table.path, reason) for reason in (*commas, *far) if reason]
        notices += [
            Problem(
                self.table.path,
                f"column {name!r} has a class {label!r}, which is learned as any other; leave cells empty where nobody "
                "labelled",
            )
            for name, labels in self.classes.items()
            for label in labels
            if label.lower() in _SAYS_MISSING
        ]
        for name, original in zip(self.names, self.table.names, strict=True):
            if name in self.classes:
                merged = merged_spellings(name, self.table.written(original), partial(self._class_of, name))
                notices += [Problem(self.table.path, reason) for reason in merged]
        notices += [Problem(slide, f"left out: {self._no_tile(slide)}") for slide in self.blank]
        notices += dict.fromkeys([*self.odd, *self._oddities()])
        notices += [Problem(self.table.path, said) for said in self._passed_over()]
        notices += rows_that_share(tiles, self.table.path)
        return (*notices, *polygon_notices(tiles))

    def _inferred(self) -> Iterable[tuple[str, Kind]]:
        told = {*(self.options.columns or {}), *(self.options.classes or {})}
        return ((name, kind) for name, kind in self.kinds.items() if name not in told)

    def _oddities(self) -> list[Problem]:
        """Of slides that rows name regions of; those that cannot be opened are found by whoever checks the tiles."""
        found = []
        for slide in sorted(self.regions_of):
            with suppress(UnreadableSlideError):
                found += [Problem(slide, reason) for reason in damage_of(slide, self.mpp.get(slide))]
        return found

    def _passed_over(self) -> list[str]:
        """Cells that mean nothing where they stand."""
        said = [
            f"column {name!r} is for slides only; it is ignored on rows with an image"
            for name in REGION
            if any(image and cell for image, cell in self._pairs("image", name))
        ]
        if "x" not in self.column and any(slide and level for slide, level in self._pairs("slide", "level")):
            said.append("column 'level' is for regions; it is ignored for whole slides, which data.mpp cuts")
        return said

    def _pairs(self, one: str, other: str) -> Iterable[tuple[str, str]]:
        """The cells of two columns, row by row; none where one of them is missing."""
        return zip(self.column.get(one, ()), self.column.get(other, ()), strict=False)

    def _class_of(self, name: str, cell: str) -> str:
        index = cells_of.parse_cell("label", cell, name, str(self.table.path), self.classes[name])
        return self.classes[name][cast(int, index)]

    def _no_tile(self, slide: Path) -> str:
        grid = self.options.grid
        return (
            f"{slide.name} gives no tile of {grid.tile_size} pixels with {grid.min_tissue:.0%} tissue; lower "
            "data.min_tissue or data.tile_size where it has any"
        )


def _is_slip(name: str, known: str) -> bool:
    """Whether `name` is `known` with one slip: a plural, a letter more or less, blanks or dashes."""
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    if len(known) < 4:
        return plain == known
    return plain == known or plain in {known[:at] + known[at + 1 :] for at in range(len(known))} or plain == known + "s"
