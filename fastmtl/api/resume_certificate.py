"""The certificate of exact resume: a short training that is killed again and again ends as one that is not.

Both run the command that a user runs, in processes of their own. The kills are SIGKILL: nothing can handle it.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ..config import ConfigError, Recipe, UsageError, as_dict, load_recipe, merge
from ..training.fingerprint import fingerprint
from ..training.run_dir import RunFolder, environment
from ..utils.atomic_io import write_whole
from ..utils.json_toml import JsonObject
from ..utils.words import counted
from .killed_runs import MOMENTS, Kill, Length, carry_out, moments, plan, run_to_end

_EPOCHS, _STAGE_EPOCHS = 3, 2  # some balancers compare three epochs
_TILES, _BATCHES = 40, 6


@dataclass(frozen=True)
class Certificate:
    """What was compared.

    Attributes:
        recipe: its name.
        seed: of the training.
        device: where it ran.
        steps: of the uninterrupted training.
        epochs: the same.
        kills: see `killed_runs.Kill`.
        not_killed: the moments at which no kill struck, in words.
        whole: part -> sha256 after the uninterrupted training; see `fingerprint`.
        resumed: the same, after the kills.
        repeatable: if they differ, whether a second uninterrupted training equals the first one; else None.
        kept: if they differ, the folder with the runs; else None.
    """

    recipe: str
    seed: int
    device: str
    steps: int
    epochs: int
    kills: list[Kill]
    not_killed: list[str]
    whole: dict[str, str]
    resumed: dict[str, str]
    repeatable: bool | None = None
    kept: Path | None = None

    @property
    def equal(self) -> bool:
        return self.whole == self.resumed

    @property
    def parts(self) -> dict[str, tuple[str, str, bool]]:
        """Part -> its two checksums ("" if it is missing), and whether they are equal."""
        names = self.whole | self.resumed
        pairs = {name: (self.whole.get(name, ""), self.resumed.get(name, "")) for name in names}
        return {name: (*pair, pair[0] == pair[1]) for name, pair in pairs.items()}

    def as_json(self) -> JsonObject:
        return {
            "equal": self.equal,
            "recipe": self.recipe,
            "seed": self.seed,
            "device": self.device,
            "steps": self.steps,
            "epochs": self.epochs,
            "parts": {
                name: {"uninterrupted": one, "resumed": other, "equal": same}
                for name, (one, other, same) in self.parts.items()
            },
            "kills": [{"asked": one.moment, "struck": one.struck, "step": one.step} for one in self.kills],
            "not_killed": self.not_killed,
            "repeatable": self.repeatable,
            "kept": None if self.kept is None else str(self.kept),
            "environment": environment(),
        }


def shortened(recipe: str, overrides: Mapping[str, Any], scale: str | None = None) -> Recipe:
    """The recipe with few steps: its scale "tiny" if it has one, few tiles and epochs; `overrides` have the last word.

    Raises:
        ConfigError: as `load_recipe`.
    """
    if scale is None:
        scale = "tiny" if "tiny" in load_recipe(recipe).scales else ""
    whole = load_recipe(recipe, overrides, scale)
    few = max(_TILES, _BATCHES * whole.data.batch_size)
    training: dict[str, Any] = {"log_every": 1, "checkpoint_steps": 2, "checkpoint_minutes": 0.0}
    training["average_start"] = min(whole.training.average_start, 1)
    short: dict[str, Any] = {"data": {"max_tiles": min(whole.data.max_tiles or few, few)}, "training": training}
    if whole.stages:
        short["stages"] = {one.name: {"epochs": min(one.epochs, _STAGE_EPOCHS)} for one in whole.stages}
    else:
        training["epochs"] = min(whole.training.epochs, _EPOCHS)
    return load_recipe(recipe, merge(short, overrides), scale)


def certify(recipe: Recipe, root: Path | None, *, kills: int = 6, console: Console | None = None) -> Certificate:
    """Train `recipe` once without interruption and once with `kills`, each time by the same command, and compare.

    Everything is written to a temporary folder, which stays only if the two differ.

    Args:
        recipe: a short one, see `shortened`; logs every step.
        root: the data; None generates those of the recipe.
        kills: how often the training is killed.
        console: where progress is printed; None prints nothing.

    Raises:
        UsageError: the recipe needs data, or `kills` is not positive.
        ConfigError: `root` does not exist.
        RunError: a training failed; the message is its own.
    """
    import tomli_w

    console = console or Console(quiet=True)
    if root is None and not recipe.data.generator:
        raise UsageError(f"recipe {recipe.name} needs data: add --data DIR.")
    if root is not None and not root.exists():
        raise ConfigError(f"--data: {root} does not exist.")
    if kills < 1:
        raise UsageError(f"--kills must be at least 1; got {kills}.")
    folder, found = Path(tempfile.mkdtemp(prefix="fastmtl-resume-")), None
    try:
        write_whole(folder / "recipe.toml", tomli_w.dumps(as_dict(recipe)))
        found = _compare(recipe, root, folder, kills, console)
        return found
    finally:
        if found is None or found.equal:
            shutil.rmtree(folder, ignore_errors=True)


def _compare(recipe: Recipe, root: Path | None, folder: Path, kills: int, console: Console) -> Certificate:
    def command(out: Path) -> list[str]:
        data = [] if root is None else ["--data", str(root.resolve())]
        return [sys.executable, "-m", "fastmtl", "train", str(folder / "recipe.toml"), "--out", str(out), *data]

    whole, killed, log = folder / "uninterrupted", folder / "killed", folder / "messages.txt"
    console.print(f"{recipe.name}, shortened: training without interruption ...")
    began = time.monotonic()
    run_to_end(command(whole), log)
    length = Length.of(whole)
    steps, epochs = length.ends[-1], len(length.ends)
    in_all = f"{counted(steps, 'step')} in {counted(epochs, 'epoch')}"
    console.print(f"{in_all}, {time.monotonic() - began:.0f} s; now with {counted(kills, 'kill')}")
    struck: list[Kill] = []
    for kill in carry_out(command(killed), killed, log, length, plan(length, kills), seed=recipe.training.seed):
        struck.append(kill)
        where = f"{kill.struck}, step {kill.step}" if kill.struck else f"the training ended before {kill.moment}"
        console.print(f"kill {len(struck)} of {kills}: {where}")
    run_to_end(command(killed), log)
    uninterrupted, resumed = fingerprint(whole), fingerprint(killed)
    repeatable = kept = None
    if uninterrupted != resumed:
        console.print("they differ; training once more without interruption, to see whether that repeats itself")
        run_to_end(command(folder / "again"), log)
        repeatable, kept = fingerprint(folder / "again") == uninterrupted, folder
    return Certificate(
        recipe=recipe.name,
        seed=recipe.training.seed,
        device=str(RunFolder(whole).extra().get("device", "")),
        steps=steps,
        epochs=epochs,
        kills=struck,
        not_killed=_not_killed(struck, length),
        whole=uninterrupted,
        resumed=resumed,
        repeatable=repeatable,
        kept=kept,
    )


def _not_killed(kills: list[Kill], length: Length) -> list[str]:
    found = []
    for moment in MOMENTS.keys() - {kill.struck for kill in kills}:
        asked = any(kill.moment == moment for kill in kills)
        why = "it was over before the signal came" if asked else "--kills is too low"
        found.append(f"{moment}: {why if moment in moments(length) else 'the recipe has one stage'}")
    return sorted(found)
