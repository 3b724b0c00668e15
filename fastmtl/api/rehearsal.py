"""Finds all problems for which `fastmtl train` would refuse a data set; training itself stops at the first one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from .. import data
from ..builders import components, datasets
from ..builders.split_leaks import split_leaks
from ..builders.splits import split_of
from ..config import Recipe
from ..data.checks.damaged_tiles import MAX_DAMAGED
from ..data.checks.duplicates import find_duplicates
from ..data.checks.side_report import count_sides, sides_of
from ..errors import UserError

_T = TypeVar("_T")


class Rehearsal(NamedTuple):
    """The findings.

    Attributes:
        refused: one line for each problem that would stop training.
        odd: problems that training would only print as notices, besides the notices of reading the data.
        splits: the contents of each side of the split (`count_sides`); {} if the data cannot be split.
    """

    refused: list[str]
    odd: list[data.Problem]
    splits: dict[str, dict[str, Any]]


def rehearse(recipe: Recipe, dataset: data.Dataset, root: Path, damaged: Collection[str]) -> Rehearsal:
    """Find everything that training with `recipe` would refuse or print as a notice.

    The checks are those of training: names, damaged files, the split, tasks against columns and masks, and the loader's
    checks. The network is not built.

    Args:
        recipe: a recipe with a [tasks] table.
        dataset: the result of `datasets.read_data` for this recipe.
        root: the path it was read from.
        damaged: ids of tiles that cannot be used, as found by `data.examine`.
    """
    refused: list[str] = []
    odd: list[data.Problem] = []

    def tried(step: Callable[[], _T]) -> _T | None:
        try:
            return step()
        except (UserError, ValueError, OSError) as error:
            line = " ".join(str(error).split())
            if line not in refused:
                refused.append(line)
            return None

    tried(lambda: components.check_names(recipe))
    folder = datasets.limited(recipe, dataset)
    good = tuple(tile for tile in folder.tiles if tile.id not in damaged)
    lost = len(folder) - len(good)
    if lost and recipe.data.on_damaged == "raise":
        refused.append(f'{lost} of {len(folder)} tiles are damaged; repair them, or set data.on_damaged = "skip"')
    elif lost > MAX_DAMAGED * len(folder):
        refused.append(f"{lost} of {len(folder)} tiles are damaged, too many to skip: check the disk")
    if not good:
        return Rehearsal(refused, odd, {})
    usable = replace(folder, tiles=good)
    split = tried(lambda: split_of(recipe, usable, root)[0])
    sides = split and tried(lambda: split.apply(usable))
    train, splits = usable, {}
    if split and sides:
        train, splits = sides[0], count_sides(usable, sides_of(split))
        odd += tried(lambda: split_leaks(recipe, usable, split, find_duplicates(usable))) or ()
    tried(lambda: datasets.check_training_tiles(recipe, train))
    tried(lambda: datasets.check_metadata(recipe, train))
    for name, options in recipe.tasks.items():  # one by one, so that a refused task does not hide another
        alone = replace(recipe, tasks={name: options})
        for task in tried(partial(components.build_tasks, alone, usable.class_names, usable.classes)) or ():
            tried(partial(datasets.check_targets, [task], train))
            odd += tried(partial(datasets.check_maps, [task], [usable], train=train)) or ()
    if not refused:  # otherwise the loader would report the same problem in other words
        tasks = components.build_tasks(recipe, usable.class_names, usable.classes)
        tried(lambda: components.build_loader(recipe, train, tasks, train=True, device=torch.device("cpu")).close())
    return Rehearsal(refused, odd, splits)
