"""The rows of a paper to train, at a scale and in the order of its tables, and their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..config import ConfigError, Recipe, as_dict, dotted, list_recipes, load_recipe
from ..utils.suggestions import nearest

_NOT_TRAINING = ("paper", "scales", "summary")  # tables of a recipe that only describe it


class RunKey(NamedTuple):
    """A run of a row: its fold, and the number of its repetition with another seed.

    >>> str(RunKey(1)), str(RunKey(1, 2)), RunKey(1, 2).folder
    ('fold 1', 'fold 1, seed 2', 'fold-1-seed-2')
    """

    fold: int
    seed: int = 0

    def __str__(self) -> str:
        return f"fold {self.fold}" + (f", seed {self.seed}" if self.seed else "")

    @property
    def folder(self) -> str:
        """Beside the other runs of its row."""
        return f"fold-{self.fold}" + (f"-seed-{self.seed}" if self.seed else "")


@dataclass(frozen=True)
class Row:
    """A row of a paper's tables.

    Attributes:
        name: of the recipe, without the paper's prefix.
        published: the recipe of the paper.
        recipe: the recipe to train, at the scale and with the user's settings.
    """

    name: str
    published: Recipe
    recipe: Recipe

    @property
    def num_folds(self) -> int:
        """The number of folds, or 1."""
        return max(1, self.recipe.data.folds)

    def run(self, key: RunKey) -> Recipe:
        """The recipe of one run. Repetition s adds s to training.seed; the split has its own seed and stays."""
        data, training = self.recipe.data, self.recipe.training
        return replace(
            self.recipe,
            data=replace(data, fold=key.fold) if data.folds else data,
            training=replace(training, seed=training.seed + key.seed),
        )

    @property
    def changes(self) -> dict[str, tuple[object, object]]:
        """Key -> (published, trained) for all settings that differ; the protocol is reported apart."""
        before, after = settings_of(self.published), settings_of(self.recipe)
        keys = dict.fromkeys([*before, *after])
        changed = [key for key in keys if before.get(key) != after.get(key) and key != "protocol"]
        return {key: (before.get(key), after.get(key)) for key in changed}


@dataclass
class Result:
    """The runs of a row: finished and failed ones.

    Attributes:
        summaries: of its finished runs, their summary.json.
        folders: of them, the run folders.
        failures: the error's one line.
    """

    row: Row
    summaries: dict[RunKey, dict[str, Any]] = field(default_factory=dict)
    folders: dict[RunKey, Path] = field(default_factory=dict)
    failures: dict[RunKey, str] = field(default_factory=dict)


def list_papers() -> list[str]:
    """The papers that have recipes."""
    return sorted({name.split("/")[0] for name in list_recipes() if "/" in name})


def rows_of(paper: str) -> list[str]:
    """The names of a paper's rows, sorted."""
    return [name.removeprefix(f"{paper}/") for name in list_recipes() if name.startswith(f"{paper}/")]


def plan(
    paper: str, *, scale: str = "full", rows: Sequence[str] = (), overrides: Mapping[str, object] | None = None
) -> list[Row]:
    """The rows of a paper, in its tables' order.

    Args:
        paper: one of `list_papers()`.
        scale: one of the recipes' scales.
        rows: names of some; all if empty.
        overrides: merged into every recipe.

    Raises:
        ConfigError: an unknown paper, row or scale, or overrides that do not fit.
    """
    if paper not in list_papers():
        raise ConfigError(f"unknown paper {paper!r}; {nearest(paper, list_papers())}")
    known = rows_of(paper)
    for row in rows:
        if row not in known:
            raise ConfigError(f"{paper} has no row {row!r}; {nearest(row, known)}")
    order = load_recipe(f"{paper}/{known[0]}").paper.order
    known.sort(key=lambda name: order.index(name) if name in order else len(order))
    chosen = [name for name in known if name in rows or not rows]
    return [
        Row(name, load_recipe(f"{paper}/{name}"), load_recipe(f"{paper}/{name}", overrides, scale)) for name in chosen
    ]


def settings_of(recipe: Recipe) -> dict[str, object]:
    """The settings that decide the training, as dotted keys."""
    return dotted({table: values for table, values in as_dict(recipe).items() if table not in _NOT_TRAINING})
