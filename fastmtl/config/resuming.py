"""What may change when a run is continued, and how two recipes differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

from .parsing import dotted, merge, typed
from .renamed import with_new_names
from .schema import Recipe
from .stages import with_total_epochs
from .validation import validate

MAY_CHANGE = (
    *("optimizer.lr", "optimizer.weight_decay", "optimizer.momentum"),
    *("training.epochs", "training.patience", "training.clip_norm", "training.log_every"),
    *("training.gradient_stats_every", "training.checkpoint", "training.tta"),
    *(
        "training.on_disk_error",
        "training.spike_factor",
        "training.on_nonfinite",
        "training.max_skipped",
        "training.max_restores",
    ),
    *("training.checkpoint_minutes", "training.checkpoint_steps", "training.keep_checkpoints", "training.rank_timeout"),
    *(
        "data.num_threads",
        "data.tile_cache",
        "data.max_damaged",
        "data.on_duplicates",
        "data.root",
        "data.index_folder",
        "data.sets.*.data",
    ),
    *("distributed.strategy", "distributed.replicas"),
    *("stages.*.epochs", "stages.*.optimizer.lr", "stages.*.optimizer.weight_decay"),
)
"""Keys of a recipe whose value a run may change when it is continued; `*` is the name of a stage."""
REBASING = ("optimizer.*", "training.epochs", "stages.*")
"""Those of them that change the learning rate, weight decay or momentum, which a checkpoint also holds."""
RESCORING = ("training.checkpoint", "training.tta")
"""Those of them that change the scores of a finished run."""
_LENGTHS = ("training.epochs", "training.patience", "stages.*.epochs")
_FILLED = ("data.mean", "data.std", "tasks.*.class_shares")
"""Keys that the first start of a run fills in if they are empty."""
_TABLES = ("protocol", "data", "model", "tasks", "balancer", "optimizer", "training", "distributed", "stages")
"""What training depends on."""

Changes = dict[str, list[Any]]
"""Key -> its value before and now."""


def differences(before: Recipe, now: Recipe) -> Changes:
    """The keys that training depends on and that differ.

    >>> from fastmtl.config import load_recipe
    >>> differences(load_recipe("demo"), load_recipe("demo", {"optimizer": {"lr": 0.5}}))
    {'optimizer.lr': [0.003, 0.5]}
    """
    old, new = (
        dotted({table: value for table, value in asdict(recipe).items() if table in _TABLES})
        for recipe in (before, now)
    )
    found = {key: [old.get(key), new.get(key)] for key in {**old, **new} if old.get(key) != new.get(key)}
    return {key: pair for key, pair in found.items() if pair[1] or not matches(key, _FILLED)}


def changed(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with `values`, nested tables as `load_recipe` takes them.

    Raises:
        ConfigError: an unknown key or an invalid value.
    """
    over = with_new_names(values)
    built: Recipe = typed(Recipe, merge(asdict(recipe), over))
    built = with_total_epochs(built, over.get("training", {}).get("epochs"))
    validate(built)
    return built


def leaves_something_to_do(changes: Changes) -> bool:
    """Whether a finished run has more to train or to score after `changes`.

    >>> leaves_something_to_do({"optimizer.lr": [0.1, 0.2], "training.epochs": [3, 2]})
    False
    >>> leaves_something_to_do({"training.patience": [3, 0]}), leaves_something_to_do({"training.tta": [[], ["h"]]})
    (True, True)
    """
    return any(
        matches(key, RESCORING)
        or (matches(key, _LENGTHS) and (now > before or (key == "training.patience" and now == 0)))
        for key, (before, now) in changes.items()
    )


def matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)
