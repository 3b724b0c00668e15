"""`fastmtl train`: a recipe, its scale and its flags into a run folder, or an interrupted run to its end."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from ..config import (
    ConfigError,
    DataConfig,
    OptimizerConfig,
    Recipe,
    TrainingConfig,
    as_dict,
    list_recipes,
    load_recipe,
    parse_overrides,
)
from ..utils.words import counted
from .arguments import positional


@dataclass(frozen=True)
class TrainArguments:
    """Train RECIPE and leave a run folder. `fastmtl train --resume --out RUN` continues one that was stopped."""

    data: Path | None = None
    """A manifest, or a folder such as CLASS/image and CLASS/label; recipes with a generator make their own."""
    out: Path | None = None
    """Run folder to create; runs/RECIPE-TIME when left out."""
    scale: str = ""
    """One of the recipe's [scales]: tiny takes seconds, small minutes; full, the recipe itself, when left out."""
    split: Path | None = None
    """JSON file with the "validation_patients" to hold out."""
    print_config: bool = False
    """Print the resolved recipe and stop."""
    set: tuple[str, ...] = ()
    """KEY=VALUE for anything else, for example model.base_channels=8."""
    loading: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def train(arguments: list[str]) -> int:
    """Parse the recipe, its scale and its flags, and train; or continue a run."""
    import tyro

    if arguments[:1] in (["-h"], ["--help"]):
        arguments = ["demo", "--help"]
    if "--resume" in arguments:
        return _resume(arguments)
    name = positional(arguments, "train", "RECIPE", f"recipes: {', '.join(list_recipes())}")
    sets, rest = _take_sets(arguments)
    scale, rest = _take_scale(rest)
    recipe = load_recipe(name, parse_overrides(sets), scale)
    hidden = _clashing(recipe.data)
    loading = replace(recipe.data, **{name: {} for name in hidden})
    default = TrainArguments(loading=loading, optimizer=recipe.optimizer, training=recipe.training)
    parsed = tyro.cli(
        Annotated[TrainArguments, tyro.conf.OmitArgPrefixes],
        args=rest,
        default=default,
        prog=f"fastmtl train {name}",
    )
    loading = replace(parsed.loading, **{name: getattr(recipe.data, name) for name in hidden})
    values = as_dict(replace(recipe, data=loading, optimizer=parsed.optimizer, training=parsed.training))
    recipe = load_recipe(name, values)  # once more, so that flags pass the same checks as files
    if parsed.print_config:
        import tomli_w

        print(tomli_w.dumps(as_dict(recipe)), end="")
        return 0
    return _run_training(recipe, parsed)


def _clashing(data: DataConfig) -> list[str]:
    """The tables of [data] with a key that is a flag already: they have no flags of their own then."""
    taken = {
        one.name for table in (TrainArguments, DataConfig, OptimizerConfig, TrainingConfig) for one in fields(table)
    }
    found = []
    for name, table in vars(data).items():
        keys = _keys(table) if isinstance(table, dict) else []
        if taken.isdisjoint(keys) and len(set(keys)) == len(keys):
            taken.update(keys)
        else:
            found.append(name)
    return found


def _keys(table: Mapping[str, Any]) -> list[str]:
    inner = [key for value in table.values() if isinstance(value, Mapping) for key in _keys(value)]
    return [*(key.replace("-", "_") for key in table), *inner]


def _run_training(recipe: Recipe, parsed: TrainArguments) -> int:
    from ..api import runs as commands

    console = _console()
    out = parsed.out or Path("runs") / f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"
    _show(commands.train(recipe, parsed.data, out, split_file=parsed.split, console=console), out, console)
    return 0


def _resume(arguments: list[str]) -> int:
    """`fastmtl train [RECIPE] --resume --out RUN`: the run's own recipe and data; nothing else can be said."""
    from ..api import runs as commands

    rest = [argument for argument in arguments if argument != "--resume"]
    place = rest.index("--out") if "--out" in rest[:-1] else None
    if place is None:
        raise ConfigError("--resume continues a run: fastmtl train --resume --out RUN.")
    out = Path(rest[place + 1])
    others = [*rest[:place], *rest[place + 2 :]]
    if len(others) > 1 or (others and others[0].startswith("-")):
        raise ConfigError(f"--resume continues {out} with its own recipe and data; leave out {' '.join(others)!r}.")
    console = _console()
    _show(commands.resume(out, console=console), out, console)
    return 0


def _show(summary: dict[str, Any], out: Path, console: Any) -> None:
    if not summary:  # rank 0 shows it
        return
    for task, values in summary["tasks"].items():
        shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items() if isinstance(value, float))
        console.print(f"{task}: {shown}")
    if count := len(summary.get("notices", [])):
        console.print(f"{counted(count, 'notice')}, in the report and in summary.json")
    console.print(f"run folder: {out}  (open {out / 'report.html'})")


def _take_sets(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split `--set KEY=VALUE ...` off: it changes the defaults that the other flags are shown with."""
    sets: list[str] = []
    rest: list[str] = []
    taking = False
    for argument in arguments:
        if argument == "--set":
            taking = True
        elif argument.startswith("--set="):
            sets.append(argument.removeprefix("--set="))
        elif argument.startswith("-"):
            taking = False
            rest.append(argument)
        else:
            (sets if taking else rest).append(argument)
    if "--set" in arguments and not sets:
        raise ConfigError("--set wants KEY=VALUE, for example model.base_channels=8; got nothing.")
    return sets, rest


def _take_scale(arguments: list[str]) -> tuple[str, list[str]]:
    """Split `--scale NAME` off: like `--set`, it changes the defaults."""
    for place, argument in enumerate(arguments):
        name, separator, value = argument.partition("=")
        if name == "--scale":
            if not separator and place + 1 < len(arguments):
                value = arguments[place + 1]
            if not value or value.startswith("-"):
                raise ConfigError("--scale wants one of the recipe's scales, for example --scale tiny; got nothing.")
            return value, [*arguments[:place], *arguments[place + (1 if separator else 2) :]]
    return "", arguments


def _console() -> Any:
    from rich.console import Console

    from ..training.progress import plain

    return plain(Console(file=sys.stderr, highlight=False, soft_wrap=True))
