"""Reads the data of a recipe's [data] table: its format, its tiles, and the sides of its split."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .. import data
from ..config import ConfigError, Recipe
from ..data.checks.duplicates import find_duplicates
from ..tasks import target_kind
from ..utils.words import counted
from .joined_sets import read_sets
from .sets import check_training_tiles as check_training_tiles
from .split_leaks import split_leaks
from .splits import split_of
from .target_checks import check_maps as check_maps
from .target_checks import check_metadata as check_metadata
from .target_checks import check_targets as check_targets
from .target_checks import columns_of as columns_of


@dataclass(frozen=True)
class Splits:
    """Training, validation and test tiles and the inner share, checked to share no patient.

    Attributes:
        origin: a description of where the split comes from.
        problems: files that were left out, and oddities of the data.
        split: which tiles are on which side, for saving.
        test: the test tiles; empty if there is no test set.
        inner: the inner share of the training patients; empty if there is none.
        summary: a few lines about the patients, how they were found, and the classes with their counts.
    """

    train: data.Dataset
    validation: data.Dataset
    origin: str
    problems: Sequence[data.Problem]
    split: data.Split
    test: data.Dataset
    inner: data.Dataset
    summary: Sequence[str] = ()

    @property
    def watching(self) -> data.Dataset:
        """The images that are evaluated after each epoch: the inner share, or else the validation tiles."""
        return self.inner if self.inner.tiles else self.validation

    @property
    def watching_name(self) -> str:
        return "inner share" if self.inner.tiles else "held-out images"


def checked_files(recipe: Recipe, root: Path, run: Path) -> data.CheckedFiles:
    """The record of sound files: in data.index_folder, for all runs on these data, or else in the run folder."""
    if not recipe.data.index_folder:
        return data.CheckedFiles(run / "checked_files.json")
    of_data = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]
    return data.CheckedFiles(Path(recipe.data.index_folder) / f"checked-files-{of_data}.json")


def read_data(recipe: Recipe, root: Path, classes: Mapping[str, Sequence[str]] | None = None) -> data.Dataset:
    """Index the data set at `root` with the recipe's [data] table; opens no image.

    Args:
        recipe: its [data] table is used.
        root: a manifest, or a folder in any known format; with data.sets the folder that holds them.
        classes: label column ("label" is the tiles' own) -> classes in order, instead of the recipe's.

    Raises:
        ConfigError: the table cannot be used.
        FileNotFoundError, ValueError: the data cannot be used.
    """
    config = recipe.data
    if config.sets:
        return read_sets(recipe, root, read_data, classes)
    if config.index_folder:
        data.use_index_folder(config.index_folder)
    offset = (float(config.polygon_offset[0]), float(config.polygon_offset[1])) if config.polygon_offset else (0.0, 0.0)
    options = data.ManifestOptions(
        columns=config.columns,
        classes={**config.classes, **(classes or {})},
        labels=_label_columns(recipe),
        root=Path(config.root) if config.root else None,
        patient=config.patient,
        grid=data.GridOptions(config.tile_size, config.mpp, config.overlap, config.min_tissue),
        polygons=data.PolygonOptions(
            classes=tuple(config.polygon_classes),
            offset=offset,
            renamed=tuple(config.polygon_rename.items()),
            ignored=tuple(config.polygon_ignore),
            region=config.polygon_region,
            unannotated=config.unannotated,
        ),
    )
    try:
        dataset = data.read_dataset(root, config.format, options)
    except re.error as error:
        raise ConfigError(f"data.patient must be a regular expression; got {config.patient!r}: {error}.") from None
    for column in config.require:
        dataset = _with_column(dataset, column)
    if config.preprocessing:
        dataset = preprocessed(dataset, config.preprocessing)
    if config.site:  # first: in its expression, "patient" is the patient
        dataset = data.with_sites(dataset, config.site)
    return data.with_groups(dataset, config.group_by) if config.group_by else dataset


def _with_column(dataset: data.Dataset, column: str) -> data.Dataset:
    """The tiles that have a value in `column`; a notice counts the others."""

    def has(tile: data.Tile) -> bool:
        own = {"mask": tile.mask, "label": tile.label}
        return (own[column] if column in own else tile.values.get(column)) is not None

    kept = tuple(tile for tile in dataset.tiles if has(tile))
    if not kept:
        raise ConfigError(f"data.require names {column!r}, which no tile of {dataset.root} has.")
    if len(kept) == len(dataset):
        return dataset
    reason = f"{counted(len(dataset) - len(kept), 'tile')} without {column} left out (data.require)"
    return replace(dataset, tiles=kept, problems=(*dataset.problems, data.Problem(dataset.root, reason)))


def patients_of(recipe: Recipe, root: Path) -> dict[str, str]:
    """Id -> patient, if the recipe's groups divide patients (images or days by themselves).

    {} if groups are patients or hold several: then a group is what must be resampled as a whole.
    """
    if not recipe.data.group_by:
        return {}
    by_patient = read_data(replace(recipe, data=replace(recipe.data, group_by="")), root)
    patients = {tile.id: tile.group for tile in by_patient.tiles}
    members: dict[str, set[str]] = {}
    for tile in data.with_groups(by_patient, recipe.data.group_by).tiles:
        members.setdefault(tile.group, set()).add(patients[tile.id])
    return patients if all(len(found) == 1 for found in members.values()) else {}


def _label_columns(recipe: Recipe) -> set[str]:
    """Columns from which tasks learn classes: in these, grades 1, 2 and 3 are classes, not numbers."""
    learnt = [(options.get("column", ""), target_kind(options["kind"])) for options in recipe.tasks.values()]
    kinds: dict[str, set[str | None]] = {}
    for column, kind in learnt:
        kinds.setdefault(column, set()).add(kind)
    return {column for column, found in kinds.items() if found == {"label"}} - {""}


def preprocessed(dataset: data.Dataset, name: str) -> data.Dataset:
    """The same tiles with image files read by a named preprocessing; regions and drawn images are unchanged."""
    tiles = [
        replace(tile, image=data.GreyPicture(tile.image, name)) if isinstance(tile.image, Path) else tile
        for tile in dataset.tiles
    ]
    return replace(dataset, tiles=tuple(tiles))


def read_splits(
    recipe: Recipe,
    root: Path,
    split_file: Path | None = None,
    checked: data.CheckedFiles | None = None,
    *,
    accept: Callable[[data.Dataset], None] | None = None,
) -> Splits:
    """Index `root`, open every file, and split by patient.

    The split comes from the first of these that exists: `split_file`; the manifest's column split; the recipe's fold,
    if it has `data.folds` (the data set's own folds if there are as many, or else drawn); `split.json` inside the
    folder; `<folder>_reference_fold.json` next to the folder; a random stratified split by `data.split_seed`.

    Files that are in `checked` are not decoded again. `accept` may refuse the tiles by an error before they are split.
    """
    asked = limited(recipe, read_data(recipe, root))
    folder, _ = data.usable_tiles(asked, recipe.data.on_damaged, checked=checked)
    if accept is not None:
        accept(folder)
    split, origin = split_of(recipe, folder, root, split_file)
    train, validation = split.apply(folder)
    found = find_duplicates(folder)
    leaks = split_leaks(recipe, folder, split, found)
    check_training_tiles(recipe, train)
    # With data.sets, the tiles' own classes are the sets.
    noun, own = ("data.sets", "sets") if recipe.data.sets else ("class", "label")
    noun = "class" if recipe.data.stratify else noun
    lacking = data.one_sided_classes(folder, train, validation, recipe.data.stratify, noun)
    odd = (
        *data.patient_notices(folder),
        *data.scale_notices(folder),
        *data.site_notices(folder),
        *leaks,
        *data.duplicate_notices(folder, leaks_alone=True, found=found),
        *(data.Problem(folder.root, line) for line in lacking),
    )
    problems = (*folder.problems, *odd)
    test, inner = split.test_of(folder), split.inner_of(folder)
    return Splits(train, validation, origin, problems, split, test, inner, data.summary_lines(folder, own))


def limited(recipe: Recipe, folder: data.Dataset) -> data.Dataset:
    """At most `data.max_tiles` of the tiles, drawn evenly from the classes of `data.stratify`."""
    config = recipe.data
    if not 0 < config.max_tiles < len(folder):
        return folder
    draw = {tile.id: hashlib.sha256(f"{config.split_seed} {tile.id}".encode()).digest() for tile in folder.tiles}
    turns: Counter[int | None] = Counter()
    places = {}
    for tile in sorted(folder.tiles, key=lambda tile: draw[tile.id]):
        label = data.label_of(tile, config.stratify)
        places[tile.id] = (turns[label], draw[tile.id])
        turns[label] += 1
    return folder.subset(sorted(places, key=lambda name: places[name])[: config.max_tiles])


def check_format(root: Path, formats: Sequence[str], what: str) -> None:
    """Raise ConfigError unless `root` is a manifest or in one of the `formats` that `what` needs."""
    if not root.exists():
        raise ConfigError(f"{root} does not exist; {what} needs {' or '.join(formats)} data.")
    found = data.detect_format(root)
    if formats and found not in (*formats, "manifest"):
        looks = f"looks like {found}" if found else "is in no format that fastmtl knows"
        raise ConfigError(f"{root} {looks}, but {what} needs {' or '.join(formats)} data; is it another paper's?")


def check_not_anothers(root: Path, formats: Sequence[str], what: str) -> None:
    """Raise ConfigError if `root` has a known format that is not in `formats`. For data of an unknown format the reader
    gives a better message."""
    if root.exists() and data.detect_format(root) is not None:
        try:
            check_format(root, formats, what)
        except ConfigError as error:
            raise ConfigError(f'{error} To use other data, write your own recipe with extends = "{what}".') from None
