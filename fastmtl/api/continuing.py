"""How a training begins: a new run, or the continuation of the one in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import data
from ..config import ConfigError, Recipe, at_key, merge
from ..config.resuming import MAY_CHANGE, REBASING, Changes, changed, differences, leaves_something_to_do, matches
from ..training.checkpoint_store import damage
from ..training.run_dir import RunError, RunFolder
from ..utils.json_toml import JsonMapping, JsonObject, read_json


@dataclass(frozen=True)
class Start:
    """What to train, and how it begins.

    Attributes:
        recipe: the recipe, with what has changed.
        root: data folder; None generates it.
        split_file: the split to use; None uses the recipe's.
        resumed: whether the folder already contains this run; it has its own split and stains.
        changes: what differs from the run until now: key -> before, now. "data" is the data folder.
        summary: of a run that has nothing left to do.
        ignored: keys that would change how it trains, if it did.
    """

    recipe: Recipe
    root: Path | None
    split_file: Path | None = None
    resumed: bool = False
    changes: Changes = field(default_factory=Changes)
    summary: JsonObject | None = None
    ignored: Sequence[str] = ()

    @property
    def rebased(self) -> bool:
        """Whether the rates of the optimizer change."""
        return any(matches(key, REBASING) for key in self.changes)


def by_recipe(out: Path, recipe: Recipe, root: Path | None, split_file: Path | None) -> Start:
    """The start of `fastmtl train RECIPE --data ROOT --out OUT`.

    For a run that exists, `recipe` may differ from the run's first recipe only in `MAY_CHANGE`. Where it is equal to
    the first recipe, the changes of earlier continuations remain.

    Raises:
        RunError: `out` contains a run of another recipe or split, or is a file.
    """
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; --out must be a folder to create.")
    run = RunFolder(out)
    if not run.exists:
        return Start(recipe, root, split_file)
    stored = run.recipe()
    try:
        first = _first_recipe(stored, run.resumes())
    except ConfigError as error:
        raise RunError(f"{out / 'resumes.jsonl'} is damaged: {error}") from error
    given = differences(first, recipe)
    _check_may_change(out, given, "" if recipe.name == stored.name else f"of recipe {stored.name!r} ")
    if split_file is not None:
        _check_split(out, split_file, drawn=bool(stored.data.max_tiles))
    return _continuation(out, changed(stored, _nested({key: now for key, (_, now) in given.items()})), root)


def by_folder(out: Path, root: Path | None, values: Mapping[str, Any]) -> Start:
    """The start of `fastmtl train --resume --out OUT`, with `values` of the recipe to change.

    Raises:
        RunError: `out` is not a run, or a value cannot change.
        ConfigError: an unknown key, or an invalid value.
    """
    if not out.exists():
        raise RunError(f"there is no run {out} to continue; start it with: fastmtl train RECIPE --out {out}.")
    stored = RunFolder(out).recipe()
    recipe = changed(stored, values)
    _check_may_change(out, differences(stored, recipe))
    return _continuation(out, recipe, root)


def _continuation(out: Path, recipe: Recipe, root: Path | None) -> Start:
    run = RunFolder(out)
    facts = run.extra()
    changes = differences(run.recipe(), recipe)
    done = not leaves_something_to_do(changes) and not damage(
        run.checkpoints, last=recipe.training.checkpoint == "last"
    )
    if done and (summary := _summary(out)) is not None:
        return Start(recipe, root, resumed=True, summary=summary, ignored=list(changes))
    before = Path(facts["data"])
    root = before if root is None else root
    if not root.exists():
        raise RunError(f"the data of {out} are not in {root}; give --data the folder that they were moved to.")
    if root.resolve() != before.resolve():
        changes["data"] = [str(before), str(root.resolve())]
    split_file = Path(facts["split_file"]) if facts["split_file"] else None
    return Start(recipe, root, split_file, True, changes)


def _summary(out: Path) -> JsonObject | None:
    """summary.json of a run that is finished: its report is its last file."""
    if not (out / "report.html").is_file():
        return None
    try:
        found = read_json(out / "summary.json")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("tasks"), dict) else None


def _first_recipe(stored: Recipe, resumes: Sequence[JsonMapping]) -> Recipe:
    """The recipe that the run began with: `stored` without the changes of its continuations."""
    first: dict[str, Any] = {}
    for record in reversed(resumes):
        first |= {key: pair[0] for key, pair in record.get("changes", {}).items() if key != "data"}
    return changed(stored, _nested(first))


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    staged = any(key.startswith("stages.") for key in values)
    for key, value in values.items():
        if value is not None and not (staged and key == "training.epochs"):  # the sum of the stages' epochs
            nested = merge(nested, at_key(key, value))
    return nested


def _check_may_change(out: Path, given: Changes, of_recipe: str = "") -> None:
    for key, (before, now) in given.items():
        if not matches(key, MAY_CHANGE):
            raise RunError(
                f"{out} contains a run {of_recipe}with {key} = {before!r}, and now it is {now!r}; choose another --out "
                "to train with other values. A run may change the learning rate and weight decay, the number of "
                "epochs, and how it saves, logs and reads; docs/cluster.md lists the keys."
            )


def _check_split(out: Path, split_file: Path, *, drawn: bool) -> None:
    """Raise RunError if `split_file` holds out or tests other patients than the run in `out`. If the run's tiles were
    `drawn` at random, the run may have only some of the patients."""
    own = RunFolder(out).split_file
    if not own.is_file():
        return
    for load, what in ((data.load_groups, "validation_patients"), (data.load_test_groups, "test_patients")):
        before, now = (sorted(map(str, load(path))) for path in (own, split_file))
        keys, new = ({data.identifier_key(name) for name in names} for names in (before, now))
        if keys != new and not (drawn and keys <= new):
            raise RunError(
                f"{out} contains a run with {what} = {before}, and in {split_file} they are {now}; choose another "
                "--out to train with another split."
            )
