"""Merges the tables of TOML files and converts them to frozen dataclasses, checking every key and type."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

from ..errors import UserError
from ..utils.suggestions import nearest

T = TypeVar("T")


class ConfigError(UserError, ValueError):
    """A recipe that cannot be used; the message is one line."""


class UsageError(ConfigError):
    """A command with missing, malformed or contradictory arguments."""

    exit_code = 2


def merge(base: Mapping[str, Any], over: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Merge `over` into `base`, table by table; a component with another name replaces the old one completely.

    In a list of named tables, such as [[stages]], an entry is addressed by its name: [stages.warm_up].

    Raises:
        ConfigError: `over` names an entry that does not exist.

    >>> merge({"stages": [{"name": "a", "epochs": 1}]}, {"stages": {"a": {"epochs": 2}}})
    {'stages': [{'name': 'a', 'epochs': 2}]}
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        name = f"{where}.{key}" if where else key
        if isinstance(value, Mapping) and isinstance(old, Mapping) and not _other_component(old, value):
            value = merge(old, value, name)
        elif isinstance(value, Mapping) and isinstance(old, list):
            value = _merge_named(old, value, name)
        merged[key] = value
    return merged


def dotted(values: object, where: str = "") -> dict[str, Any]:
    """The values of nested tables by dotted keys; tables in a list by their names. Empty tables are left out.

    >>> dotted({"optimizer": {"lr": 0.1}, "stages": [{"name": "a", "epochs": 1}]})
    {'optimizer.lr': 0.1, 'stages.a.name': 'a', 'stages.a.epochs': 1}
    """
    if isinstance(values, list) and values and all(isinstance(one, Mapping) and "name" in one for one in values):
        values = {str(one["name"]): one for one in values}
    if not isinstance(values, Mapping):
        return {where: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= dotted(value, f"{where}.{key}" if where else str(key))
    return found


def _merge_named(old: Sequence[Any], over: Mapping[str, Any], where: str) -> list[object]:
    names = [one.get("name") for one in old if isinstance(one, Mapping)]
    for name, value in over.items():
        if name not in names:
            raise ConfigError(f"unknown key '{where}.{name}'; {nearest(name, list(map(str, names)))}")
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}.{name} must be a table; got {value!r}.")
    merged = []
    for one in old:
        name = str(one.get("name")) if isinstance(one, Mapping) else ""
        merged.append(merge(one, over[name], f"{where}.{name}") if name in over else one)
    return merged


def _other_component(old: Mapping[str, object], new: Mapping[str, object]) -> bool:
    """Whether `new` chooses another model, balancer or kind of task, so that the old options do not apply."""
    return any(key in old and new.get(key, old[key]) != old[key] for key in ("name", "kind"))


def typed(cls: type[T], values: object, where: str = "") -> T:
    """Convert a table, including its inner tables, to the dataclass `cls`.

    Args:
        cls: fields of plain types, Literals, dataclasses and lists of dataclasses.
        values: the table.
        where: its name in messages; "" is the recipe itself.

    Raises:
        ConfigError: an unknown key (the message suggests the closest known key), a wrong type, or a missing key.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'a recipe'} must be a table; got {values!r}.")
    hints = typing.get_type_hints(cls)
    built: dict[str, object] = {}
    for key, value in values.items():
        name = f"{where}.{key}" if where else key
        if key not in hints:
            raise ConfigError(f"unknown key {name!r}; {_inside(key, hints) or nearest(key, list(hints))}")
        hint = hints[key]
        (element,) = typing.get_args(hint) if typing.get_origin(hint) is list else (None,)
        if isinstance(element, type) and dataclasses.is_dataclass(element):
            built[key] = [typed(element, one, _named(one, name, at)) for at, one in enumerate(_listed(value, name))]
        elif dataclasses.is_dataclass(hint):
            built[key] = typed(cast(type, hint), value, name)
        else:
            built[key] = _checked(hint, value, name)
    for one in dataclasses.fields(cast(Any, cls)):
        bare = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if bare and one.name not in built:
            raise ConfigError(f"{where or 'the recipe'} needs `{one.name}`.")
    return cls(**built)


def _listed(value: object, name: str) -> list[object]:
    if not isinstance(value, list):
        raise ConfigError(f"{name} must be a list of tables, [[{name}]]; got {value!r}.")
    return value


def _named(value: object, where: str, at: int) -> str:
    name = value.get("name") if isinstance(value, Mapping) else None
    return f"{where}.{name}" if isinstance(name, str) and name else f"{where}[{at}]"


def _inside(key: str, hints: Mapping[str, object]) -> str:
    """The hint for a key of an inner table, such as `epochs` of `training`."""
    for table, hint in hints.items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and key in typing.get_type_hints(hint):
            return f"did you mean '{table}.{key}'?"
    return ""


def _checked(hint: Any, value: object, name: str) -> object:
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")
        return value
    expected = origin if isinstance(origin, type) and not isinstance(hint, types.UnionType) else hint
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ConfigError(f"{name} must be {_READABLE[expected]}; got {value!r}.")
    if isinstance(value, list) and typing.get_args(hint) == (str,) and not all(isinstance(one, str) for one in value):
        raise ConfigError(f"{name} must be a list of texts; got {value!r}.")
    if isinstance(value, str) and "\0" in value:  # no path can hold it
        raise ConfigError(f"{name} must not contain a null character; got {value!r}.")
    return value


_READABLE = {int: "an integer", float: "a number", bool: "true or false", str: "text", dict: "a table", list: "a list"}
