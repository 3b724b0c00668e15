"""`fastmtl train`: trains a recipe, whose values flags can change, or continues an interrupted run."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from .. import api
from ..config import (
    RENAMED,
    DataConfig,
    OptimizerConfig,
    Recipe,
    TrainingConfig,
    UsageError,
    as_dict,
    at_key,
    list_recipes,
    load_recipe,
    merge,
    parse_overrides,
)
from ..data import Augmentation
from ..utils.words import counted
from .arguments import Parser, progress_console

_TABLES = {"data": DataConfig, "data.augmentation": Augmentation, "optimizer": OptimizerConfig}
_TABLES["training"] = TrainingConfig
"""Tables of a recipe whose keys are flags."""


def train(arguments: Sequence[str]) -> int:
    """Train a recipe, or continue a run; returns the exit code."""
    parser = _parser(Recipe("RECIPE"))
    parsed = parser.parse(arguments, unless=("resume", "help"))
    if parsed.help:
        (parser if parsed.recipe is None else _parser(_recipe(parsed))).print_help()
        parser.exit()
    console = progress_console()
    if parsed.resume:
        out = _run_to_resume(parsed)
        summary = api.resume(out, root=parsed.data, changes=_overrides(parsed), profile=parsed.profile, console=console)
    else:
        recipe = _recipe(parsed)
        if parsed.print_config:
            import tomli_w

            print(tomli_w.dumps(as_dict(recipe)), end="")
            return 0
        out = parsed.out or Path("runs") / f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"
        summary = api.train(recipe, parsed.data, out, split_file=parsed.split, profile=parsed.profile, console=console)
    for task, values in summary.get("tasks", {}).items():  # empty on all ranks but the first
        shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items() if isinstance(value, float))
        console.print(f"{task}: {shown}")
    if count := len(summary.get("notices", [])):
        console.print(f"{counted(count, 'notice')}, in the report and in summary.json")
    if summary:
        console.print(f"run folder: {out}  (open {out / 'report.html'})")
    return 0


def _parser(shown: Recipe) -> Parser:
    """Its help shows the values of `shown` as defaults."""
    parser = Parser("train", "Train RECIPE and write a run folder, or continue a run.", add_help=False)
    parser.usage = (
        "fastmtl train RECIPE [--data DIR] [--out RUN] [OPTION ...]\n"
        "       fastmtl train --resume --out RUN [--data DIR] [OPTION ...]"
    )
    parser.need("RECIPE", f"recipes: {', '.join(list_recipes())}")
    parser.add_argument(
        "-h", "--help", action="store_true", help="show this message, with the recipe's values as defaults"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="a manifest, or a folder such as CLASS/image and CLASS/label; recipes with a generator make their own",
    )
    parser.add_argument(
        "--out", type=Path, metavar="RUN", help="run folder to create or to continue (default: runs/RECIPE-TIME)"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --out with its own recipe and data; --data says where the data were moved to, --set "
        "and flags change what may change in a run",
    )
    parser.add_argument(
        "--scale",
        nargs="?",
        const="",
        help="one of the recipe's [scales]: tiny takes seconds, small minutes (default: full, the recipe itself)",
    )
    parser.add_argument("--split", type=Path, metavar="FILE", help='JSON with the "validation_patients" to hold out')
    parser.add_argument(
        "--print-config", action=argparse.BooleanOptionalAction, default=False, help="print the whole recipe and stop"
    )
    parser.add_argument(
        "--profile", action="store_true", help="write a torch.profiler trace of four steps to RUN/profile"
    )
    parser.add_set("any other key, for example model.base_channels=8 or distributed.strategy=fsdp2")
    values = as_dict(shown)
    for table, cls in _TABLES.items():
        group = parser.add_argument_group(f"[{table}] of the recipe")
        texts, here = _texts(cls), values
        for name in table.split("."):
            here = here[name]
        for key, hint in typing.get_type_hints(cls).items():
            default = here.get(key, getattr(cls, key, None))
            _add_flag(group, f"{table}.{key}", hint, f"{texts.get(key, '')} (default: {default!r})")
    for old, new in RENAMED.items():
        hint = typing.get_type_hints(TrainingConfig)[new.rpartition(".")[2]]
        _add_flag(parser, old, hint, argparse.SUPPRESS)
    return parser


def _add_flag(group: argparse._ActionsContainer, key: str, hint: Any, text: str) -> None:
    """Add a flag for a key of a recipe. Keys that are tables, or lists of them, have none: `--set` changes their
    entries."""
    options: dict[str, Any] = {"dest": key, "default": argparse.SUPPRESS, "help": text.replace("%", "%%").strip()}
    inner = typing.get_args(hint)
    if hint is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(hint) is typing.Literal:
        by_text = {str(choice): choice for choice in inner}
        options |= {"choices": inner, "type": lambda text: by_text.get(text, text)}
    elif inner and dataclasses.is_dataclass(inner[0]):
        return
    elif typing.get_origin(hint) in (list, tuple):
        options |= {"nargs": "*", "type": inner[0], "metavar": inner[0].__name__.upper()}
    elif typing.get_origin(hint) is dict:
        return
    else:
        options |= {"type": hint, "metavar": hint.__name__.upper()}
    group.add_argument(f"--{key.rpartition('.')[2].replace('_', '-')}", **options)


def _texts(cls: type) -> dict[str, str]:
    """Field -> the text under it in the source of a dataclass."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _recipe(parsed: argparse.Namespace) -> Recipe:
    """The recipe at the chosen scale; flags override `--set`, which overrides the recipe."""
    if parsed.scale == "":
        raise UsageError("--scale needs one of the recipe's scales, for example --scale tiny; got nothing.")
    return load_recipe(parsed.recipe, _overrides(parsed), parsed.scale or "")


def _overrides(parsed: argparse.Namespace) -> dict[str, Any]:
    """What `--set` and flags give, as nested tables."""
    overrides = parse_overrides(parsed.sets)
    for key, value in _flags(parsed).items():
        overrides = merge(overrides, at_key(key, value))
    return overrides


def _flags(parsed: argparse.Namespace) -> Mapping[str, object]:
    """Key of the recipe -> the value that a flag gives it."""
    return {key: value for key, value in vars(parsed).items() if "." in key}


def _run_to_resume(parsed: argparse.Namespace) -> Path:
    """The run to continue; UsageError if --out is missing, or for options that would make it another run."""
    if parsed.out is None:
        raise UsageError("--resume continues a run: fastmtl train --resume --out RUN.")
    if others := [f"--{name}" for name in ("split", "scale") if getattr(parsed, name)]:
        raise UsageError(f"--resume continues {parsed.out} with its own recipe and split; remove {' '.join(others)}.")
    return parsed.out
