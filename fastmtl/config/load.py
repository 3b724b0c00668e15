"""Recipes, filled from defaults < `extends` < the recipe's TOML < its [scales] < command-line values.

An unknown key is an error that names the nearest known one; components (model, tasks, balancer, augmentation) are
named, never imported by path.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..utils.json_toml import parse_toml
from . import files as recipe_files
from . import validation
from .parsing import ConfigError, merge, typed
from .schema import OptimizerConfig, Recipe, StageConfig, TrainingConfig


def load_recipe(recipe: str | Path, overrides: Mapping[str, Any] | None = None, scale: str = "") -> Recipe:
    """A built-in recipe by name, or a TOML file by path.

    Args:
        recipe: name (see `list_recipes`) or path to a TOML file.
        overrides: nested mapping laid over the file, for example {"training": {"epochs": 3}}.
        scale: one of the recipe's [scales]; "" and "full" take it as it stands.

    Raises:
        ConfigError: unknown recipe, unreadable TOML, unknown key, wrong type; one line each.
    """
    path = recipe_files.find(str(recipe))
    values = recipe_files.read(path)
    values.setdefault("name", recipe_files.name_of(path))
    _check_files(path, values, overrides or {})
    for name in values.get("scales", {}):
        _check_overlay(values, name)
    standard = TrainingConfig.epochs
    values = recipe_files.shortened(recipe_files.at_scale(values, scale, values["name"]), standard)
    values = recipe_files.shortened(merge(values, overrides or {}), standard)
    built: Recipe = typed(Recipe, values)
    if built.stages:
        built = _count_epochs(built, (overrides or {}).get("training", {}).get("epochs"))
    validation.check(built, {stage.name: optimizer_of(built, stage) for stage in built.stages})
    return built


def stages_of(recipe: Recipe) -> list[StageConfig]:
    """The recipe's stages; without any, one of all its epochs, without a name."""
    return recipe.stages or [StageConfig("", recipe.training.epochs)]


def optimizer_of(recipe: Recipe, stage: StageConfig) -> OptimizerConfig:
    """The recipe's optimizer with the stage's laid over it."""
    return typed(
        OptimizerConfig, merge(dataclasses.asdict(recipe.optimizer), stage.optimizer), f"stages.{stage.name}.optimizer"
    )


def parse_override(text: str) -> dict[str, Any]:
    """`model.base_channels=8` -> {"model": {"base_channels": 8}}; the value is read as TOML, else taken as text."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set wants KEY=VALUE, for example model.base_channels=8; got {text!r}.")
    try:
        parsed = parse_toml(f"v = {value}")["v"]
    except ValueError:
        parsed = value
    *tables, last = key.split(".")
    nested: dict[str, Any] = {last: parsed}
    for table in reversed(tables):
        nested = {table: nested}
    return nested


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Several `KEY=VALUE`, each laid over those before it."""
    overrides: dict[str, Any] = {}
    for text in texts:
        overrides = merge(overrides, parse_override(text))
    return overrides


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as nested plain values; `load_recipe` of its TOML gives the same recipe."""
    return dataclasses.asdict(recipe)


def _check_files(path: Path, values: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Raise ConfigError for what a recipe or one of its bases has wrong at any scale, with the file that has it."""
    problem = _problem_of(values)
    if not problem or problem != _problem_of(merge(values, overrides)):
        return
    for file in recipe_files.lineage(path):
        if _problem_of({"name": "", **recipe_files.read(file)}) == problem:
            raise ConfigError(f"{file}: {problem}")


def _problem_of(values: Mapping[str, Any]) -> str:
    try:
        typed(Recipe, values)
    except ConfigError as error:
        return str(error)
    return ""


def _check_overlay(values: Mapping[str, Any], scale: str) -> None:
    """Raise ConfigError for an overlay that would not fit, also while nobody asks for it."""
    try:
        typed(Recipe, recipe_files.at_scale(values, scale, values["name"]))
    except ConfigError as error:
        raise ConfigError(f"recipe {values['name']}, scales.{scale}: {error}") from None


def _count_epochs(recipe: Recipe, asked: int | None) -> Recipe:
    """training.epochs is the stages' sum; a flag that says something else would be passed over in silence."""
    lengths = {stage.name: stage.epochs for stage in recipe.stages}
    total = sum(stage.epochs for stage in recipe.stages)
    if asked not in (None, total):
        parts = ", ".join(f"{name} {epochs}" for name, epochs in lengths.items())
        raise ConfigError(
            f"recipe {recipe.name} has stages with epochs of their own ({parts}), and training.epochs is {asked}. "
            f"Change a stage instead: --set stages.{recipe.stages[0].name}.epochs={asked}."
        )
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, epochs=total))
