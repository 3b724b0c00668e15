"""Checks that a data set has the targets of the tasks: columns of the right kind, masks with the expected values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from .. import data
from ..config import ConfigError, Recipe
from ..protocols import MAPS, Task
from ..utils.suggestions import folded, nearest

_NEEDS_NOTHING = ("pair", "none")


def check_targets(tasks: Sequence[Task], dataset: data.Dataset) -> None:
    """Raise ConfigError for a task whose target is missing in `dataset` or has the wrong kind; the message lists
    suitable columns."""
    for task in tasks:
        _check_groups(task, dataset)
        kind, column = task.target.kind, task.target.column
        if kind in _NEEDS_NOTHING:
            continue
        fitting = [name for name in columns_of(dataset) if _fits(kind, _kind_of(dataset, name))]
        own = "mask" if kind in MAPS else "label"
        name = column or own
        if not column and kind not in MAPS and kind != "label":
            raise ConfigError(f"task {task.name!r} learns a {kind} but has no column; {_say(task.name, fitting)}")
        found = _kind_of(dataset, name)
        if found is None:
            hint = nearest(name, fitting) if fitting else "none of its columns is suitable"
            raise ConfigError(f"task {task.name!r} learns from column {name!r}, but {dataset.root} has none; {hint}")
        if not _fits(kind, found):
            raise ConfigError(
                f"task {task.name!r} needs a {kind}, but column {name!r} has a {found}; {_say(task.name, fitting)}, "
                f'or declare it: [data.columns] {name} = "{"picture" if kind in MAPS else kind}".'
            )


def _check_groups(task: Task, dataset: data.Dataset) -> None:
    grouping = getattr(task, "grouping", None)
    if grouping is None:
        return
    for column in grouping.columns:
        without = [tile.id for tile in dataset.tiles if data.label_of(tile, column) is None]
        if without:
            option = "group_by" if column == grouping.group_by else "threshold_by"
            raise ConfigError(
                f"task {task.name!r} is scored by {column!r}, and {len(without)} of the {len(dataset)} images of "
                f"{dataset.root} have no value, first {without[0]!r}; fill in the column, or remove `{option}`."
            )


def check_metadata(recipe: Recipe, dataset: data.Dataset) -> None:
    """Raise ConfigError for metadata from a column without values: the model would see zeros."""
    known = [name for name in columns_of(dataset) if _kind_of(dataset, name) in ("number", "label")]
    for name, columns in recipe.data.metadata.items():
        for column in [columns] if isinstance(columns, str) else columns:
            if column not in known:
                raise ConfigError(
                    f"data.metadata {name} uses column {column!r}, which has no numbers in {dataset.root}; "
                    f"{nearest(str(column), known) if known else 'no column has numbers'}"
                )


def check_maps(
    tasks: Sequence[Task],
    folders: Sequence[data.Dataset],
    *,
    train: data.Dataset | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[data.Problem]:
    """Find oddities in the masks of data sets whose files were checked; reads every mask (`data.judge_maps`).

    Every command that trains with masks, scores with them or checks them calls this.

    Args:
        tasks: the tasks whose targets are masks are checked.
        folders: the data sets.
        train: the training data; if all its masks are the same, that is an oddity.
        say: called with one line about each task's masks.

    Raises:
        ConfigError: the masks of a task have other classes or channels than the task, the same ones in another order,
            or a foreground that the loader would miss.
    """
    odd = []
    learned = {tile.id for tile in train.tiles} if train else ()
    for task in tasks:
        if task.target.kind not in MAPS:
            continue
        tiles = [tile for folder in folders for tile in _tiles_of(task, folder)]
        masks = data.seen_masks(tiles, task.target.column)
        classes, ignored = task.output.channels, getattr(task, "ignore_index", None)
        structures = getattr(task, "structures", ())
        if task.target.kind == "classes":
            maps = [tile.values.get(task.target.column) if task.target.column else tile.mask for tile in tiles]
            _check_order(task.name, structures, {one.classes for one in maps if isinstance(one, data.Polygons)})
        found = data.judge_maps(masks, task.target, classes, ignored, structures)
        if found.wrong:
            names = ", ".join(structures)
            raise ConfigError(f"task {task.name!r} ({names or f'{classes} classes'}): {found.wrong}.")
        if found.words:
            say(f"masks of {task.name}: {found.words}")
        odd += [replace(problem, reason=f"task {task.name!r}: {problem.reason}") for problem in found.odd]
        mine = [mask for mask in masks if mask.tile.id in learned]
        if train and (same := data.constant_maps(mine, task.target, structures)):
            reason = f"task {task.name!r}: in training {same}: there is nothing to learn, and its scores say nothing"
            odd.append(data.Problem(train.root, reason))
    return odd


def _tiles_of(task: Task, folder: data.Dataset) -> Sequence[data.Tile]:
    """The tiles of the sets that have labels for the task; all, if it is of no set."""
    names = getattr(task, "sets", ())
    numbers = {folder.class_names.index(name) for name in names if name in folder.class_names}
    return [tile for tile in folder.tiles if tile.label in numbers] if names else folder.tiles


def _check_order(task: str, structures: Sequence[str], drawn: Collection[tuple[str, ...]]) -> None:
    """Raise ConfigError if polygons are drawn by another index than that of the structure of the same name, or those of
    two sets by different ones: every score and every predicted class would have the name of another one."""
    places, of_sets = {folded(name): place for place, name in enumerate(structures)}, dict[str, int]()
    for classes in sorted(drawn):
        for place, name in enumerate(classes):
            if (other := places.get(folded(name), place)) != place:
                raise ConfigError(
                    f"task {task!r} ({', '.join(structures)}) has {name!r} at {other}, and data.polygon_classes has it "
                    f"at {place}: polygons of this class would be learned as {_at(structures, place)}; list them in "
                    "the same order."
                )
            if (other := of_sets.setdefault(name, place)) != place:
                raise ConfigError(
                    f"task {task!r}: data.polygon_classes has {name!r} at {other} in one of its data.sets and at "
                    f"{place} in another; list them in the same order."
                )


def _at(names: Sequence[str], place: int) -> str:
    return repr(names[place]) if place < len(names) else f"class {place}, which the task lacks"


def columns_of(dataset: data.Dataset) -> list[str]:
    """The columns that have a value in some tile, the tiles' own mask and label first."""
    own = [name for name in ("mask", "label") if any(getattr(tile, name) is not None for tile in dataset.tiles)]
    return [*own, *dict.fromkeys(name for tile in dataset.tiles for name in tile.values)]


def _kind_of(dataset: data.Dataset, column: str) -> str | None:
    """label, picture, number, vector or text; None for a column without a value."""
    if column in ("mask", "label"):
        has = any(getattr(tile, column) is not None for tile in dataset.tiles)
        return {"mask": "picture", "label": "label"}[column] if has else None
    value = next((found for tile in dataset.tiles if (found := tile.values.get(column)) is not None), None)
    if value is None or column in dataset.classes:
        return None if value is None else "label"
    return data.kind_of(value)


def _fits(kind: str, found: str | None) -> bool:
    wanted = "picture" if kind in MAPS else {"box": "vector"}.get(kind, kind)
    return found == wanted


def _say(task: str, fitting: Sequence[str]) -> str:
    return (
        f"set [tasks.{task}] column to one of {', '.join(fitting)}" if fitting else "no column of the data is suitable"
    )
