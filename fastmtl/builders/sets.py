"""What [[data.sets]] mean for the parts of a training: columns, tasks, batches, balancers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .. import balance, data
from ..balance.set_balancers import SetBalancers, options_for
from ..config import ConfigError, Recipe
from ..data.loading.tile_sets import TileSets, shares_of
from ..protocols import MAPS

_WITH_MAIN = ("constant", "decay", "du_gate")  # balancers whose main task is the first one by default


def column_in(recipe: Recipe, task: str, kind: str | None = "label") -> str:
    """The column that a task learns from; "" is the tile's own mask or label.

    With data.sets, columns of the same name may have other classes in each set, so that each task has a column
    "tasks.NAME", except for masks, which have no classes of their own.

    Args:
        recipe: with the task.
        task: its name.
        kind: of its target.
    """
    column = recipe.tasks[task].get("column", "")
    if not isinstance(column, str):
        raise ConfigError(f"tasks.{task}.column must be text, the name of a column; got {column!r}.")
    if recipe.data.sets and kind not in (*MAPS, "pair", "none"):
        return f"tasks.{task}"
    return "" if column in ("mask", "label") else column


def sets_of(recipe: Recipe, task: str) -> tuple[str, ...]:
    """The sets that have labels for a task; () without data.sets."""
    return tuple(one.name for one in recipe.data.sets if task in one.tasks)


def tile_sets(recipe: Recipe, folder: data.Dataset) -> TileSets | None:
    """How the batches of `folder` are drawn from the sets; None without data.sets, and for tiles of none of them, as
    for predictions."""
    sets = recipe.data.sets
    names = tuple(one.name for one in sets)
    if not sets or folder.class_names != names or any(tile.label is None for tile in folder.tiles):
        return None
    return TileSets(
        names,
        tuple(tuple(one.tasks) for one in sets),
        tuple(shares(recipe, folder).values()),
        recipe.data.sets_batches == "mixed",
    )


def shares(recipe: Recipe, folder: data.Dataset) -> dict[str, float]:
    """The share of each set in the samples that are drawn from `folder`."""
    found, config = Counter(tile.label for tile in folder.tiles), recipe.data
    sizes = {one.name: found[number] for number, one in enumerate(config.sets)}
    weights = {one.name: one.weight for one in config.sets if one.weight}
    return shares_of(sizes, weights, config.sets_temperature)


def check_training_tiles(recipe: Recipe, train: data.Dataset) -> None:
    """Raise ConfigError for a set without a training tile, or one that would never be drawn."""
    found = {tile.label for tile in train.tiles}
    drawn = shares(recipe, train) if recipe.data.sets else {}
    for number, one in enumerate(recipe.data.sets):
        if number not in found:
            raise ConfigError(
                f"data.sets.{one.name} has no tile to train on: the split holds all its patients out; take another "
                "data.split_seed or a smaller data.val_fraction, or leave the set out."
            )
        if not drawn[one.name]:
            raise ConfigError(
                f"data.sets.{one.name} has the share 0, rounded, and would never be drawn; raise its weight or "
                "data.sets_temperature, or leave the set out."
            )


def rare_sets(recipe: Recipe, train: data.Dataset, batch: int) -> list[str]:
    """A line for each set that is due less than one draw in the whole training; `batch` is that of all ranks."""
    config, tiles = recipe.data, len(train.tiles)
    if not config.sets:
        return []
    epochs = sum(stage.epochs for stage in recipe.stages) or recipe.training.epochs
    unit, draws = ("image", tiles) if config.sets_batches == "mixed" else ("batch", -(-tiles // batch))
    return [
        f"data.sets.{name}: its share of {share:.2g} is {share * draws * epochs:.2g} of one {unit} in the whole "
        "training, so that it may never be drawn; raise its weight or data.sets_temperature, or leave it out"
        for name, share in shares(recipe, train).items()
        if share * draws * epochs < 1
    ]


def build_balancers(recipe: Recipe, name: str, options: Mapping[str, Any], tasks: Sequence[str]) -> SetBalancers:
    """A balancer for the tasks of each set, among `tasks` (all if empty)."""
    every = [task for task in recipe.tasks if task in tasks or not tasks]
    if name in _WITH_MAIN:
        options = {"main": 0, **options}

    def make(group: tuple[str, ...]) -> Any:
        own = options_for(options, group, every)
        if name == "du_gate" and own["main"] == []:
            raise ConfigError(
                f"balancer.main is {options['main']!r}, and the set with {', '.join(group)} has no labels for it; take "
                'another balancer, or data.sets_batches = "mixed".'
            )
        return balance.create_balancer(name, **own)

    return SetBalancers(make, [[task for task in every if task in one.tasks] for one in recipe.data.sets])
