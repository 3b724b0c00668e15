"""The stages of a recipe, combined with the recipe's own options."""

from __future__ import annotations

import dataclasses

from .parsing import ConfigError, merge, typed
from .schema import OptimizerConfig, Recipe, StageConfig


def stages_of(recipe: Recipe) -> list[StageConfig]:
    """The recipe's stages; if it has none, one stage without a name with all epochs."""
    return recipe.stages or [StageConfig("", recipe.training.epochs)]


def optimizer_of(recipe: Recipe, stage: StageConfig) -> OptimizerConfig:
    """The recipe's optimizer with the stage's options merged into it."""
    return typed(
        OptimizerConfig, merge(dataclasses.asdict(recipe.optimizer), stage.optimizer), f"stages.{stage.name}.optimizer"
    )


def with_total_epochs(recipe: Recipe, asked: int | None) -> Recipe:
    """The recipe with training.epochs set to the sum of its stages' epochs.

    Raises:
        ConfigError: `asked`, the epochs of an override, differs from the sum and would have no effect.
    """
    if not recipe.stages:
        return recipe
    total = sum(stage.epochs for stage in recipe.stages)
    if asked not in (None, total):
        parts = ", ".join(f"{stage.name} {stage.epochs}" for stage in recipe.stages)
        raise ConfigError(
            f"recipe {recipe.name} has stages with their own epochs ({parts}), but training.epochs is {asked}. "
            f"Change a stage instead: --set stages.{recipe.stages[0].name}.epochs={asked}."
        )
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, epochs=total))
