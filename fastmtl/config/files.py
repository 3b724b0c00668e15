"""Recipe files: finding them, merging them with their bases, and applying overlays for smaller scales.

This module knows only these keys of a recipe: `scales`, the keys that `training.epoch_scale` multiplies, and the keys
that a recipe does not inherit (its name, its summary and its paper).
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..utils.json_toml import read_toml
from ..utils.suggestions import nearest
from .parsing import ConfigError, merge
from .renamed import with_new_names

BUILT_IN = Path(__file__).parents[1] / "recipes"
FULL = "full"  # the scale of the recipe itself
_MOST_BASES = 20
_LONGEST_NAME = 200


def list_recipes() -> list[str]:
    """Names of the built-in recipes, sorted; recipes of a paper begin with its folder: "mask2tasks/pcgrad".

    Files named _*.toml are not listed: they are bases for other recipes.
    """
    return sorted(name_of(path) for path in BUILT_IN.rglob("[!_]*.toml"))


def name_of(path: Path) -> str:
    """The name of a recipe: its path in the folder of built-in recipes, or else its file name, without the ending."""
    place = path.relative_to(BUILT_IN) if path.is_relative_to(BUILT_IN) else Path(path.name)
    return place.as_posix().removesuffix(".toml")


def find(recipe: str) -> Path:
    """The file of a built-in recipe, or the file at a path; ConfigError if neither exists."""
    built_in = BUILT_IN / f"{recipe}.toml"
    if built_in.is_file():
        return built_in
    path = Path(recipe)
    if path.suffix == ".toml":
        if path.is_file():
            return path
        raise ConfigError(f"recipe file {recipe} does not exist.")
    raise ConfigError(f"unknown recipe {recipe!r}; {nearest(recipe, list_recipes())} A path must end in .toml.")


def read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tables of a recipe merged into those of its base (`extends`), after `without` has removed keys from the base.
    The name and the summary are not inherited. A user's recipe does not inherit the paper of a built-in one.

    Raises:
        ConfigError: unreadable TOML, a recipe that extends itself, or a key in `without` that the base does not have.
    """
    if path in seen:
        raise ConfigError(f"recipe {path.stem} extends itself: {' -> '.join(p.stem for p in (*seen, path))}.")
    if len(seen) > _MOST_BASES:
        raise ConfigError(f"recipe {seen[0].stem} extends more than {_MOST_BASES} recipes, one after the other.")
    values = with_new_names(tables(path))
    base, left_out = values.pop("extends", None), values.pop("without", [])
    if not isinstance(left_out, list) or (left_out and base is None):
        raise ConfigError(
            f'{path}: `without` lists keys of the base it `extends`, as ["tasks.mask"]; got {left_out!r}.'
        )
    if base is None:
        return values
    parent = _parent(path, base)
    inherited = read(parent, (*seen, path))
    for key in left_out:
        if not _remove(inherited, str(key).split(".")):
            raise ConfigError(f"{path}: `without` names {key!r}, which its base {base!r} does not have.")
        for overlay in inherited.get("scales", {}).values():
            _remove(overlay, str(key).split("."))
    kin = path.is_relative_to(BUILT_IN) == parent.is_relative_to(BUILT_IN)
    inherited.pop("name", None)
    if not (kin and parent.name.startswith("_")):  # a base that is not a recipe itself may give its summary
        inherited["summary"] = f"extends {base}"
    if not kin and "paper" not in values:
        inherited.pop("paper", None)
    return merge(inherited, values)


def tables(path: Path) -> dict[str, Any]:
    """The tables of one file; ConfigError if it is not TOML."""
    try:
        return read_toml(path)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error


def lineage(path: Path) -> list[Path]:
    """The files that `read` merges, the last base first and `path` last."""
    base = tables(path).get("extends")
    return [path] if base is None else [*lineage(_parent(path, base)), path]


def _parent(path: Path, base: object) -> Path:
    """The file that `path` extends: in the same folder or below it, or built in; ConfigError for any other."""
    name = base if isinstance(base, str) else ""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in name or "\0" in name or len(name) > _LONGEST_NAME:
        raise ConfigError(
            f"{path}: `extends` names a built-in recipe or a file in the recipe's own folder, without its ending; got "
            f"{reprlib.repr(base)}."
        )
    parent = path.parent / f"{name}.toml"
    return parent if parent.is_file() else find(name)


def at_scale(values: Mapping[str, Any], scale: str, name: str) -> dict[str, Any]:
    """The tables of a recipe with its [scales.NAME] merged into them; "full" or "" returns them unchanged.

    Raises:
        ConfigError: the recipe has no such scale; the message lists its scales.
    """
    scales = values.get("scales", {})
    if not isinstance(scales, Mapping) or not all(isinstance(one, Mapping) for one in scales.values()):
        raise ConfigError(f"recipe {name}: scales must be tables, [scales.NAME.TABLE]; got {scales!r}.")
    if scale in ("", FULL):
        return dict(values)
    if scale not in scales:
        raise ConfigError(
            f"recipe {name} has no scale {scale!r}; it has {', '.join([*scales, FULL])} (without --scale: {FULL})."
        )
    return merge(values, scales[scale])


def scale_epochs(values: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """The tables with `training.epoch_scale` applied: epochs and patience are multiplied by it, also in stages, and are
    at least 1; average_start is multiplied and rounded down.

    Args:
        values: the tables of a recipe.
        epochs: the default of training.epochs.
    """
    training = values.get("training", {})
    factor = training.get("epoch_scale", 1.0) if isinstance(training, Mapping) else 1.0
    if factor == 1.0 or isinstance(factor, bool) or not isinstance(factor, int | float):
        return dict(values)  # the check of types reports what is wrong
    if not 0 < factor <= 1:
        raise ConfigError(f"training.epoch_scale must be in (0, 1]; got {factor!r}.")
    lengths = {"epochs": epochs} | {key: training[key] for key in ("epochs", "patience") if key in training}
    short = {key: _fewer(value, factor) for key, value in lengths.items()}
    if isinstance(start := training.get("average_start"), int):
        short["average_start"] = int(start * factor)  # rounded down, so that it stays before the last epoch
    stages = values.get("stages", [])
    if isinstance(stages, list):
        stages = [
            {**one, "epochs": _fewer(one["epochs"], factor)} if isinstance(one, Mapping) and "epochs" in one else one
            for one in stages
        ]
    return {**values, "training": {**training, **short, "epoch_scale": 1.0}, "stages": stages}


def _fewer(value: object, factor: float) -> object:
    return max(1, round(value * factor)) if isinstance(value, int) and value > 0 else value


def _remove(values: object, keys: list[str]) -> bool:
    """Remove a key from nested tables in place; returns whether it existed."""
    *tables, last = keys
    for key in tables:
        values = values.get(key) if isinstance(values, dict) else None
    return isinstance(values, dict) and values.pop(last, None) is not None
