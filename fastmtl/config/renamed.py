"""Renamed keys of recipes: the old names work for one version and warn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..utils.deprecation import warn_renamed

RENAMED = {
    "training.shorten": "training.epoch_scale",
    "training.watch_gradients": "training.gradient_stats_every",
}


def with_new_names(values: Mapping[str, object], *, warn: bool = True) -> dict[str, Any]:
    """The tables of a recipe, and of its scales, with the new names."""
    found = dict(values)
    for old, new in RENAMED.items():
        table, _, old_key = old.partition(".")
        options = found.get(table)
        if isinstance(options, Mapping) and old_key in options:
            if warn:
                warn_renamed(f"the key {old}", new, stacklevel=4)
            others = {key: value for key, value in options.items() if key != old_key}
            found[table] = {new.partition(".")[2]: options[old_key]} | others
    if isinstance(scales := found.get("scales"), Mapping):
        found["scales"] = {
            name: with_new_names(overlay, warn=warn) if isinstance(overlay, Mapping) else overlay
            for name, overlay in scales.items()
        }
    return found
