"""What a recipe's values may be, beyond their types."""

from __future__ import annotations

from collections.abc import Mapping

from .names import nearest
from .recipe import OptimizerConfig, Recipe
from .tables import ConfigError

VIEWS = ("h", "v", "r90", "r180", "r270")  # of an image, besides itself: flips and quarter turns


def check(recipe: Recipe, optimizers: Mapping[str, OptimizerConfig]) -> None:
    """Raise ConfigError, one line, for the first value that cannot be used.

    Args:
        recipe: its types are right.
        optimizers: stage -> the recipe's optimizer with the stage's laid over it.
    """
    data, training = recipe.data, recipe.training
    limits = {
        "data.size must be a positive multiple of 16": data.size > 0 and data.size % 16 == 0,
        "data.batch_size must be at least 1": data.batch_size >= 1,
        "data.val_fraction must lie between 0 and 1": 0 < data.val_fraction < 1,
        "data.test_fraction must lie between 0 and 1 - val_fraction": 0 <= data.test_fraction < 1 - data.val_fraction,
        "data.folds must be 0, or 2 and more": data.folds == 0 or data.folds >= 2,
        "data.fold must be 0 to folds - 1": 0 <= data.fold < max(data.folds, 1),
        "data.tile_size must be at least 1": data.tile_size >= 1,
        "data.mpp must be finite and not negative": 0 <= data.mpp < float("inf"),
        "data.overlap must be 0 to tile_size - 1": 0 <= data.overlap < data.tile_size,
        "data.min_tissue must lie between 0 and 1": 0 <= data.min_tissue <= 1,
        "data.max_damaged must lie in [0, 1)": 0 <= data.max_damaged < 1,
        "data.max_tiles must not be negative": data.max_tiles >= 0,
        "data.open_slides must not be negative": data.open_slides >= 0,
        "data.per_slide must not be negative": data.per_slide >= 0,
        "data.patches_per_slide must not be negative": data.patches_per_slide >= 0,
        "data.polygon_offset must be x and y": len(data.polygon_offset) in (0, 2),
        "data.classes must map columns to lists of classes": all(isinstance(v, list) for v in data.classes.values()),
        "data.metadata must map names to lists of columns": all(isinstance(v, list) for v in data.metadata.values()),
        "data.num_threads must be at least 1": data.num_threads >= 1,
        "training.epochs must be at least 1": training.epochs >= 1,
        "training.clip_norm must be finite and not negative": 0 <= training.clip_norm < float("inf"),
        "training.patience must not be negative": training.patience >= 0,
        "training.average_decay must lie in (0, 1)": 0 < training.average_decay < 1,
        "training.average_start must not be negative": training.average_start >= 0,
        f"training.tta must be views among {', '.join(VIEWS)}; got {training.tta}": set(training.tta) <= set(VIEWS),
        "training.tta names a view twice": len(set(training.tta)) == len(training.tta),
        "training.log_every must be at least 1": training.log_every >= 1,
        "training.watch_gradients must not be negative": training.watch_gradients >= 0,
        "model needs a `name`, as text": isinstance(recipe.model.get("name"), str),
        "balancer needs a `name`, as text": isinstance(recipe.balancer.get("name"), str),
        "tasks is empty: a recipe needs at least one [tasks.NAME] table with a `kind`": bool(recipe.tasks),
    }
    _check_stages(recipe)
    _hold(recipe, limits)
    for where, one in {"optimizer": recipe.optimizer, **_of_stages(optimizers)}.items():
        _hold(recipe, _optimizer_limits(where, one))
    for name, task in recipe.tasks.items():
        if not isinstance(task, Mapping) or not isinstance(task.get("kind"), str):
            raise ConfigError(f"recipe {recipe.name}: tasks.{name} needs a `kind`, for example 'classification'.")


def _check_stages(recipe: Recipe) -> None:
    names = [stage.name for stage in recipe.stages]
    for number, stage in enumerate(recipe.stages):
        where = f"stages.{stage.name}"
        _hold(
            recipe,
            {
                f"stages[{number}] needs a `name`, as text and without dots": bool(stage.name)
                and "." not in stage.name,
                f"two stages have the name {stage.name!r}": names.count(stage.name) == 1,
                f"{where}.epochs must be at least 1": stage.epochs >= 1,
                f"{where}.tasks names a task twice": len(set(stage.tasks)) == len(stage.tasks),
                f"{where}.auxiliary_stride must not be negative": stage.auxiliary_stride >= 0,
                f"{where}.balancer needs a `name`, as text": not stage.balancer
                or isinstance(stage.balancer.get("name"), str),
                f"{where} has no stage before it whose best weights it could start from": number > 0
                or stage.start == "last",
                f"{where} has no stage before it whose optimizer it could keep": number > 0 or not stage.keep_optimizer,
            },
        )
        for task in stage.tasks:
            if task not in recipe.tasks:
                raise ConfigError(
                    f"recipe {recipe.name}: {where} names task {task!r}; {nearest(task, list(recipe.tasks))}"
                )


def _optimizer_limits(where: str, optimizer: OptimizerConfig) -> dict[str, bool]:
    return {
        f"{where}.lr must be finite and not negative": 0 <= optimizer.lr < float("inf"),
        f"{where}.weight_decay must be finite and not negative": 0 <= optimizer.weight_decay < float("inf"),
        f"{where}.warmup must lie in [0, 1)": 0 <= optimizer.warmup < 1,
        f"{where}.plateau_factor must lie in (0, 1)": 0 < optimizer.plateau_factor < 1,
        f"{where}.plateau_patience must not be negative": optimizer.plateau_patience >= 0,
    }


def _of_stages(optimizers: Mapping[str, OptimizerConfig]) -> dict[str, OptimizerConfig]:
    return {f"stages.{stage}.optimizer": optimizer for stage, optimizer in optimizers.items()}


def _hold(recipe: Recipe, limits: Mapping[str, bool]) -> None:
    for message, holds in limits.items():
        if not holds:
            raise ConfigError(f"recipe {recipe.name}: {message}.")
