"""The tables [[data.sets]] of a recipe: data sets side by side, which train one network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SetConfig:
    """One of several data sets."""

    name: str
    """The set's name in scores, split files and the report."""
    data: str
    """A manifest or a folder, relative to --data (the current folder without it)."""
    tasks: list[str] = field(default_factory=list[str])
    """The tasks that the set has labels for."""
    weight: float = 0.0
    """How often the set is drawn, relative to the weights of the others; 0: by its size and data.sets_temperature."""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """How the set is read, instead of the same keys of [data]: format, root, columns, classes, patient, mpp, ..."""
