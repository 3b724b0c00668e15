"""Reads the data sets of a recipe's [[data.sets]] as one: tiles with the number of their set as label."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .. import data
from ..config import ConfigError, Recipe, SetConfig, data_of
from ..data.dataset import with_one_spelling
from ..protocols import MAPS, Task
from .components import build_tasks, columns_of_metadata
from .sets import column_in
from .target_checks import check_metadata, check_targets

Classes = Mapping[str, Sequence[str]]
Read = Callable[[Recipe, Path, Classes | None], data.Dataset]


@dataclass(frozen=True)
class _Part:
    """One set: its recipe, which has its tasks alone, and its tiles."""

    name: str
    recipe: Recipe
    dataset: data.Dataset
    tasks: Sequence[Task]


def read_sets(recipe: Recipe, root: Path, read: Read, classes: Classes | None = None) -> data.Dataset:
    """The tiles of all sets, one set after the other: "SET/ID", with values of the set's tasks only.

    Patients of the same name are one patient, also in different sets and in another spelling. The notices on how a
    set's patients were found are among the problems: its unused columns are gone in the tiles of all sets.

    Args:
        recipe: with data.sets.
        root: the folder that their paths are relative to.
        read: reads one of them.
        classes: column "tasks.NAME" -> classes in order, instead of the recipe's.

    Raises:
        ConfigError: a set lacks labels of one of its tasks, or has them in another form than an earlier set.
        FileNotFoundError, ValueError: a set cannot be read.
    """
    kept = {*columns_of_metadata(recipe), recipe.data.stratify, "split"} - {""}
    if "label" in kept:
        raise ConfigError(
            "with data.sets a tile's own label is its set; give the column `label` another name to use it in "
            "data.metadata, data.stratify, group_by or threshold_by."
        )
    parts = [_read_part(recipe, one, root, read, classes or {}) for one in recipe.data.sets]
    tiles = tuple(
        _tile_of(part, number, tile, kept) for number, part in enumerate(parts) for tile in part.dataset.tiles
    )
    _check_lengths(parts)
    joined = data.Dataset(
        root,
        tuple(part.name for part in parts),
        tiles,
        tuple(one for part in parts for one in (*part.dataset.problems, *data.patient_notices(part.dataset))),
        _classes_of(parts, kept),
        "; ".join(f"{part.name}: {part.dataset.patients_from}" for part in parts),
        {path: mpp for part in parts for path, mpp in part.dataset.slide_mpp.items()},
    )
    return with_one_spelling(joined)


def _read_part(recipe: Recipe, one: SetConfig, root: Path, read: Read, classes: Classes) -> _Part:
    tasks = {task: options for task, options in recipe.tasks.items() if task in one.tasks}
    alone = replace(recipe, data=data_of(recipe.data, one), tasks=tasks, stages=[])
    known = {
        column_in(alone, task) or "label": classes[f"tasks.{task}"] for task in tasks if f"tasks.{task}" in classes
    }
    try:
        dataset = read(alone, root / one.data, known)
        built = build_tasks(alone, dataset.class_names, dataset.classes)
        check_targets(built, dataset)
        check_metadata(alone, dataset)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"data.sets.{one.name}.data: {error}") from None
    except ValueError as error:
        raise ConfigError(f"data.sets.{one.name}, tasks {', '.join(tasks)}: {error}") from error
    return _Part(one.name, alone, dataset, built)


def _tile_of(part: _Part, number: int, tile: data.Tile, kept: Collection[str]) -> data.Tile:
    """The tile as one of set `number`."""
    values = {column: value for column, value in tile.values.items() if column in kept}
    mask = None
    for task in part.tasks:
        kind, column = task.target.kind, task.target.column
        if kind in MAPS and not column:
            mask = tile.mask
        elif kind in MAPS:
            values[column] = tile.values.get(column)
        elif kind not in ("pair", "none"):
            own = data.label_of(tile, column) if kind == "label" else tile.values.get(column)
            values[f"tasks.{task.name}"] = own
    return replace(tile, id=f"{part.name}/{tile.id}", mask=mask, label=number, values=values)


def _classes_of(parts: Sequence[_Part], kept: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Label column -> its classes, the same in all sets that have it."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for part in parts:
        labels = {f"tasks.{task.name}": task.target.column for task in part.tasks if task.target.kind == "label"}
        labels |= {column: column for column in part.dataset.classes if column in kept}
        for name, column in labels.items():
            mine = part.dataset.names_of(column)
            other, theirs = found.setdefault(name, (part.name, mine))
            if mine != theirs:
                raise ConfigError(
                    f"{name} has the classes {', '.join(theirs)} in data.sets.{other} and {', '.join(mine)} in "
                    f"data.sets.{part.name}; list the same for both in data.classes.{column or 'label'}, or make two "
                    "tasks of it."
                )
    return {name: classes for name, (_, classes) in found.items()}


def _check_lengths(parts: Sequence[_Part]) -> None:
    """Raise ConfigError for a task whose vectors have another length in one of its sets."""
    found: dict[str, tuple[str, int]] = {}
    for part in parts:
        for task in part.tasks:
            values = (tile.values.get(task.target.column) for tile in part.dataset.tiles)
            for length in sorted({len(value) for value in values if isinstance(value, tuple)}):
                other, theirs = found.setdefault(task.name, (part.name, length))
                if length != theirs:
                    raise ConfigError(
                        f"tasks.{task.name} has {theirs} numbers in data.sets.{other} and {length} in "
                        f"data.sets.{part.name}, column {task.target.column!r}; make two tasks of it."
                    )
