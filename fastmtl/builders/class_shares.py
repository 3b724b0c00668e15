"""How often the training images show each class, for tasks that adjust their logits to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from .. import data
from ..config import DataConfig, Recipe
from .sets import column_in, shares


def with_class_shares(recipe: Recipe, train: data.Dataset) -> Recipe:
    """The recipe with `class_shares` of `train` in each task that adjusts its logits or decisions and lacks them.

    They are shares of the images that the sampler draws, so balanced sampling makes them more equal. A class without
    any image has half the share of the rarest.
    """
    tasks = dict(recipe.tasks)
    for name, options in tasks.items():
        adjusts = options.get("logit_adjustment") or options.get("decision_adjustment")
        if adjusts and not options.get("class_shares"):
            column = column_in(recipe, name)
            classes = train.classes.get(column, train.class_names)
            drawn = list(shares(recipe, train).values()) if recipe.data.sets else []
            tasks[name] = {**options, "class_shares": _shares(recipe.data, train, column, len(classes), drawn)}
    return replace(recipe, tasks=tasks)


def _shares(
    config: DataConfig, train: data.Dataset, column: str, num_classes: int, of_sets: Sequence[float]
) -> list[float]:
    sums = [0.0] * num_classes
    balance = [tile.label if of_sets else data.label_of(tile, config.balance_by) for tile in train.tiles]
    sizes = Counter(balance)
    power = config.balance_power if config.sampler == "balanced" else 1.0 if of_sets else 0.0
    for tile, group in zip(train.tiles, balance, strict=True):
        if (label := data.label_of(tile, column)) is not None:
            of_set = of_sets[group] if of_sets and group is not None else 1.0
            sums[label] += of_set * sizes[group] ** -power
    least = min((value for value in sums if value), default=1.0) / 2
    total = sum(max(value, least) for value in sums)
    return [max(value, least) / total for value in sums]
