"""Pretrained weights in a recipe: the normalisation they need, and parts that may not be frozen without them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from .. import models
from ..config import ConfigError, Recipe, StageConfig, stages_of
from ..utils.normalization import IMAGENET, Normalization


def normalization_of(recipe: Recipe) -> Normalization:
    """The recipe's; ImageNet's if it has none, as in runs of earlier versions."""
    return Normalization.of(recipe.data.mean, recipe.data.std) if recipe.data.mean else IMAGENET


def with_normalization(recipe: Recipe, model: nn.Module) -> Recipe:
    """The recipe with the mean and standard deviation that belong to the weights of `model`, unless it has its own.

    Raises:
        ConfigError: it has others than the loaded weights, without data.other_normalization.
    """
    report = getattr(model, "weights_report", None)
    own, given = models.normalization_of(model) if report is None else report.normalization, normalization_of(recipe)
    if not recipe.data.mean:
        return replace(recipe, data=replace(recipe.data, mean=list(own.mean), std=list(own.std)))
    if report is not None and not given.near(own) and not recipe.data.other_normalization:
        raise ConfigError(
            f"recipe {recipe.name}: data.mean and data.std are {given}, but the images of model.weights "
            f"{report.source} had {own}; leave both out to follow the weights, or set data.other_normalization = true."
        )
    return recipe


def check_frozen(recipe: Recipe, model: nn.Module) -> None:
    """Raise ConfigError if a part is frozen with random weights: neither loaded nor trained in an earlier stage.

    Heads and decoders of tasks that a stage does not train may be frozen in any state.
    """
    if recipe.training.freeze_random or not isinstance(model, models.MultiTaskModel):
        return
    report = getattr(model, "weights_report", None)
    loaded = () if report is None else report.loaded
    ready = _parameters(model, model.parts.keys() & set(loaded)) if "the model" not in loaded else {*model.parameters()}
    built = model.frozen
    for stage in stages_of(recipe):
        idle = [name for name in model.parts if name.split(".")[-1] in _idle_tasks(recipe, stage)]
        resting = _parameters(model, [*built, *stage.freeze])
        for name in (*sorted(built), *stage.freeze):
            if random := _parameters(model, [name]) - ready - _parameters(model, idle):
                where = (
                    f"stages.{stage.name} freezes" if name in stage.freeze else f"model {recipe.model['name']} freezes"
                )
                raise ConfigError(
                    f"recipe {recipe.name}: {where} {name!r}, but {len(random)} of its parameters are random: set "
                    f"model.weights{_hint(model)}, or train it in an earlier stage."
                )
        ready |= {*model.parameters()} - resting


def _idle_tasks(recipe: Recipe, stage: StageConfig) -> set[str]:
    return recipe.tasks.keys() - set(stage.tasks or recipe.tasks)


def _parameters(model: models.MultiTaskModel, names: Iterable[str]) -> set[nn.Parameter]:
    return {parameter for name in names for parameter in model.part(name).parameters()}


def _hint(model: nn.Module) -> str:
    known = " or ".join(repr(name) for name in models.published_weights(model))
    return f" to {known} or a file" if known else " to a file"
