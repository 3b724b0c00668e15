"""Loads recipes: defaults < `extends` < the recipe's TOML < its [scales] < command-line values.

The error for an unknown key suggests the closest known key. Components (model, tasks, balancer, augmentation) are
chosen by name, never imported by path.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..utils.json_toml import parse_toml
from . import files
from .parsing import ConfigError, UsageError, merge, typed
from .renamed import with_new_names
from .schema import Recipe, TrainingConfig
from .stages import with_total_epochs
from .validation import validate


def load_recipe(recipe: str | Path, overrides: Mapping[str, object] | None = None, scale: str = "") -> Recipe:
    """Load a built-in recipe by name, or a TOML file by path.

    Args:
        recipe: name (see `list_recipes`) or path to a TOML file.
        overrides: nested mapping merged into the file, for example {"training": {"epochs": 3}}.
        scale: one of the recipe's [scales]; "" and "full" use the recipe unchanged.

    Raises:
        ConfigError: unknown recipe, unreadable TOML, unknown key, or wrong type; the message is one line.
    """
    path = files.find(str(recipe))
    values = files.read(path)
    values.setdefault("name", files.name_of(path))
    overrides = with_new_names(overrides or {})
    standard = TrainingConfig.epochs
    scaled = files.scale_epochs(files.at_scale(values, scale, values["name"]), standard)
    scaled = files.scale_epochs(merge(scaled, overrides), standard)
    try:
        built: Recipe = typed(Recipe, scaled)
    except ConfigError as error:
        for file in files.lineage(path):
            if _problem_of({"name": "", **files.read(file)}) == str(error):
                raise ConfigError(f"{file}: {error}") from None
        _check_overlays(values)
        raise
    _check_overlays(values)
    built = with_total_epochs(built, overrides.get("training", {}).get("epochs"))
    validate(built)
    return built


def load_run_recipe(path: Path) -> Recipe:
    """Load the recipe in a run's config.toml, which is complete and may use keys of an earlier version."""
    recipe = with_total_epochs(typed(Recipe, with_new_names(files.tables(path), warn=False)), None)
    validate(recipe)
    return recipe


def parse_override(text: str) -> dict[str, Any]:
    """`model.base_channels=8` -> {"model": {"base_channels": 8}}. A value that is not valid TOML is taken as text."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageError(f"--set needs KEY=VALUE, for example model.base_channels=8; got {text!r}.")
    try:
        parsed = parse_toml(f"v = {value}")["v"]
    except ValueError:
        parsed = value
    return at_key(key, parsed)


def at_key(key: str, value: Any) -> dict[str, Any]:
    """Nested tables with `value` at a dotted key.

    >>> at_key("training.epochs", 3)
    {'training': {'epochs': 3}}
    """
    for table in reversed(key.split(".")):
        value = {table: value}
    return value


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Merge several `KEY=VALUE`; later ones win."""
    overrides = {}
    for text in texts:
        overrides = merge(overrides, parse_override(text))
    return overrides


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as nested plain values; `load_recipe` of this as TOML returns the same recipe."""
    return dataclasses.asdict(recipe)


def _problem_of(values: Mapping[str, object]) -> str:
    try:
        typed(Recipe, values)
    except ConfigError as error:
        return str(error)
    return ""


def _check_overlays(values: Mapping[str, Any]) -> None:
    """Raise ConfigError for an invalid scale, even if it is not used."""
    for scale in values.get("scales", {}):
        if problem := _problem_of(files.at_scale(values, scale, values["name"])):
            raise ConfigError(f"recipe {values['name']}, scales.{scale}: {problem}")
