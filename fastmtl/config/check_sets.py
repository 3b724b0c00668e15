"""Checks the data sets of a recipe, [[data.sets]], and how each of them is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..utils.suggestions import folded, nearest
from .parsing import ConfigError, typed
from .schema import DataConfig, Recipe
from .sets import SetConfig

_OPTIONS = (
    *("format", "root", "columns", "classes", "patient", "group_by", "site", "require", "preprocessing"),
    *("mpp", "overlap", "min_tissue"),
    *("polygon_classes", "polygon_rename", "polygon_ignore", "polygon_region", "polygon_offset", "unannotated"),
)
_ALONE = {
    "generator": "name the generated folders as `data` of the sets",
    "open_slides": "remove it: a set's tiles are drawn from all its slides",
    "per_slide": "remove it, and give the set a `weight` for how often it is drawn",
    "patches_per_slide": "remove it: a set's slides are cut into a grid, with `mpp` and `overlap` of its options",
}
"""Keys of [data] that sets cannot be combined with -> what to do."""
_SAMPLERS = {
    "balanced": "weight rare classes by the logit_adjustment of their task, or make a set of them with a weight",
    "pairs": "train the task of pairs in a run of its own",
}
"""Samplers that sets cannot be combined with -> what to do."""


_WITH_SETS = ("sets_temperature", "sets_batches", "sets_zeta", "sets_floor", "sets_probe_every")
"""Keys of [data] that need sets."""


def data_of(data: DataConfig, one: SetConfig) -> DataConfig:
    """The [data] table that one set is read with.

    Raises:
        ConfigError: an option that a set does not have, or of the wrong type.
    """
    where = f"data.sets.{one.name}.options"
    for key in one.options:
        if key not in _OPTIONS:
            raise ConfigError(f"unknown key '{where}.{key}'; {nearest(key, _OPTIONS)}")
    own = typed(type(data), one.options, where)
    none: dict[str, Any] = {key: getattr(DataConfig(), key) for key in _WITH_SETS}
    return replace(data, sets=[], **none, **{key: getattr(own, key) for key in one.options})


def check_sets(recipe: Recipe, check_data: Callable[[DataConfig], None]) -> None:
    """Raise ConfigError for sets that cannot be used; `check_data` checks the [data] table of each."""
    data = recipe.data
    if not 0 < data.sets_temperature < float("inf"):
        raise ConfigError(f"data.sets_temperature must be finite and above 0; got {data.sets_temperature!r}.")
    if not data.sets:
        for key in _WITH_SETS:
            if getattr(data, key) != getattr(DataConfig(), key):
                raise ConfigError(f"data.{key} needs [[data.sets]]; got {getattr(data, key)!r} without any.")
        return
    for key, cure in _ALONE.items():
        if getattr(data, key):
            raise ConfigError(f"data.{key} cannot be combined with data.sets; got {getattr(data, key)!r}; {cure}.")
    if data.sampler != "shuffled":
        cure = _SAMPLERS[data.sampler]
        raise ConfigError(f'data.sampler must be "shuffled" with data.sets; got {data.sampler!r}; {cure}.')
    names: dict[str, str] = {}
    for number, one in enumerate(data.sets):
        _check_set(recipe, number, one)
        if (other := names.get(folded(one.name))) is not None:
            both = repr(other) if other == one.name else f"{other!r} or {one.name!r}"
            raise ConfigError(f"two of data.sets have the name {both}; give each its own name.")
        names[folded(one.name)] = one.name
        try:
            check_data(data_of(data, one))
        except ConfigError as error:
            raise ConfigError(f"data.sets.{one.name}: {error}") from None
    _check_weights(data)
    _check_zeta(recipe)
    for task in recipe.tasks:
        if not any(task in one.tasks for one in data.sets):
            raise ConfigError(
                f"task {task!r} is in no set; add it to the `tasks` of one of data.sets ({', '.join(names.values())})."
            )
    _check_stages(recipe)
    if data.sets_batches == "one" and recipe.distributed.strategy == "fsdp2":
        raise ConfigError('data.sets_batches = "one" needs distributed.strategy = "ddp"; or set it to "mixed".')


def _check_set(recipe: Recipe, number: int, one: SetConfig) -> None:
    if not re.fullmatch(r"[^./\\\s]+", one.name):
        raise ConfigError(f"data.sets[{number}] needs a `name` without dots, slashes and spaces; got {one.name!r}.")
    where = f"data.sets.{one.name}"
    if not one.data:
        raise ConfigError(f"{where}.data must name a manifest or a folder; got {one.data!r}.")
    if not one.tasks or len(set(one.tasks)) < len(one.tasks):
        raise ConfigError(f"{where}.tasks must name tasks, each once; got {one.tasks!r}.")
    for task in one.tasks:
        if task not in recipe.tasks:
            raise ConfigError(f"{where}.tasks has an unknown task {task!r}; {nearest(task, list(recipe.tasks))}")
    if not 0 <= one.weight < float("inf"):
        raise ConfigError(f"{where}.weight must be finite and not negative; got {one.weight!r}.")


def _check_weights(data: DataConfig) -> None:
    without = [one.name for one in data.sets if not one.weight]
    if 0 < len(without) < len(data.sets):
        raise ConfigError(
            f"data.sets.{without[0]} has no weight above 0, and others have one; give one to all sets or to none, or "
            "leave out a set that is not to be drawn."
        )
    if not without and data.sets_temperature != 1.0:
        raise ConfigError(
            f"data.sets_temperature ({data.sets_temperature:g}) draws sets by their size, and data.sets have weights; "
            "remove one of the two."
        )


def _check_zeta(recipe: Recipe) -> None:
    data = recipe.data
    if not 0 < data.sets_floor <= 1:
        raise ConfigError(f"data.sets_floor must be above 0 and at most 1; got {data.sets_floor!r}.")
    if data.sets_probe_every < 1:
        raise ConfigError(f"data.sets_probe_every must be 1 or more; got {data.sets_probe_every}.")
    if not data.sets_zeta:
        return
    if len(data.sets_zeta) != 2 or not all(0 <= zeta < float("inf") for zeta in data.sets_zeta):
        raise ConfigError(
            f"data.sets_zeta must be two finite numbers, not negative: zeta1 and zeta2; got {data.sets_zeta!r}."
        )
    if len(data.sets) < 2 or data.batch_size < 2:
        raise ConfigError(
            "data.sets_zeta needs two sets and a data.batch_size of 2 or more, because gradients of two halves of a "
            f"batch are compared; got {len(data.sets)} and {data.batch_size}."
        )
    if recipe.distributed.strategy == "fsdp2":
        raise ConfigError('data.sets_zeta needs distributed.strategy = "ddp"; got "fsdp2".')


def _check_stages(recipe: Recipe) -> None:
    for stage in recipe.stages if recipe.data.sets_batches == "one" else ():
        for one in recipe.data.sets:
            if stage.tasks and not set(stage.tasks) & set(one.tasks):
                raise ConfigError(
                    f"stages.{stage.name} trains {', '.join(stage.tasks)}, and data.sets.{one.name} has labels for "
                    f"{', '.join(one.tasks)} only; add one of these to the stage."
                )
