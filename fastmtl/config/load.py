"""Loads recipes: defaults < `extends` < the recipe's TOML < its [scales] < command-line values.

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
from .parsing import ConfigError, merge, typed
from .renamed import with_new_names
from .schema import Recipe, TrainingConfig
from .stages import with_total_epochs
from .validation import validate


def load_recipe(recipe: str | Path, overrides: Mapping[str, object] | None = None, scale: str = "") -> Recipe:
    """A built-in recipe by name, or a TOML file by path.

    Args:
        recipe: name (see `list_recipes`) or path to a TOML file.
        overrides: nested mapping merged into the file, for example {"training": {"epochs": 3}}.
        scale: one of the recipe's [scales]; "" and "full" are the recipe itself.

    Raises:
        ConfigError: unknown recipe, unreadable TOML, unknown key, wrong type; one line each.
    """
    path = recipe_files.find(str(recipe))
    values = recipe_files.read(path)
    values.setdefault("name", recipe_files.name_of(path))
    overrides = with_new_names(overrides or {})
    standard = TrainingConfig.epochs
    scaled = recipe_files.scale_epochs(recipe_files.at_scale(values, scale, values["name"]), standard)
    scaled = recipe_files.scale_epochs(merge(scaled, overrides), standard)
    try:
        built: Recipe = typed(Recipe, scaled)
    except ConfigError as error:
        for file in recipe_files.lineage(path):
            if _problem_of({"name": "", **recipe_files.read(file)}) == str(error):
                raise ConfigError(f"{file}: {error}") from None
        _check_overlays(values)
        raise
    _check_overlays(values)
    built = with_total_epochs(built, overrides.get("training", {}).get("epochs"))
    validate(built)
    return built


def load_run_recipe(path: Path) -> Recipe:
    """The recipe in the config.toml of a run: it is complete, and may have the keys of an earlier version."""
    recipe = with_total_epochs(typed(Recipe, with_new_names(recipe_files.tables(path), warn=False)), None)
    validate(recipe)
    return recipe


def parse_override(text: str) -> dict[str, Any]:
    """`model.base_channels=8` -> {"model": {"base_channels": 8}}; the value is TOML, or else text."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set wants KEY=VALUE, for example model.base_channels=8; got {text!r}.")
    try:
        parsed = parse_toml(f"v = {value}")["v"]
    except ValueError:
        parsed = value
    return at_key(key, parsed)


def at_key(key: str, value: Any) -> dict[str, Any]:
    """The nested tables in which `value` is at a dotted key.

    >>> at_key("training.epochs", 3)
    {'training': {'epochs': 3}}
    """
    for table in reversed(key.split(".")):
        value = {table: value}
    return value


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Several `KEY=VALUE`; later ones win."""
    overrides = {}
    for text in texts:
        overrides = merge(overrides, parse_override(text))
    return overrides


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as nested plain values; `load_recipe` of its TOML gives the same recipe."""
    return dataclasses.asdict(recipe)


def _problem_of(values: Mapping[str, object]) -> str:
    try:
        typed(Recipe, values)
    except ConfigError as error:
        return str(error)
    return ""


def _check_overlays(values: Mapping[str, Any]) -> None:
    """Raise ConfigError for a scale that does not fit, even if it is not used."""
    for scale in values.get("scales", {}):
        if problem := _problem_of(recipe_files.at_scale(values, scale, values["name"])):
            raise ConfigError(f"recipe {values['name']}, scales.{scale}: {problem}")
