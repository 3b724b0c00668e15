"""The command line: parses, calls `commands`, and turns every expected error into one line and a non-zero exit."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from .config import (
    ConfigError,
    DataConfig,
    OptimizerConfig,
    Recipe,
    TrainingConfig,
    as_dict,
    list_recipes,
    load_recipe,
    merge,
    parse_override,
)
from .errors import UserError
from .extras import install_command

USAGE = """fastmtl: train one network for several tasks on medical images

  fastmtl train RECIPE --data DIR --out RUN    train; RECIPE is a name that `fastmtl recipes` lists, or a TOML file;
                                               --scale tiny or small: on a machine without a GPU
  fastmtl train --resume --out RUN             continue a run that was stopped
  torchrun --nproc-per-node N -m fastmtl train ...       train or continue on N processes, one GPU each where there are
  fastmtl eval RUN --data DIR                  metrics of a run as JSON on standard output
  fastmtl predict RUN INPUT --out DIR          masks and classes for images or whole slides without labels
  fastmtl report RUN [RUN ...]                 the page of a run again, or one page that compares several
  fastmtl report RUN --analyse                 its saliency maps, feature maps and filters anew too
  fastmtl prepare DIR [--out MANIFEST]         a manifest of a folder of tiles or slides; indexes the slides
  fastmtl data check PATH                      open every file of a data set: counts, and what is broken
  fastmtl reproduce PAPER --data DIR           a paper's tables beside ours: --scale tiny, small or full
  fastmtl recipes [PAPER]                      the built-in recipes: papers, models, figures to reproduce
  fastmtl models                               the networks, their papers, parameters and strides
  fastmtl bench                                measure fastmtl beside its peers
  fastmtl doctor                               versions, devices, and which backend each op takes

`fastmtl COMMAND --help` lists every option.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 fine, 1 failed, 2 wrong usage, 130 stopped)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from . import __version__

        print(__version__)
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in _COMMANDS:
        print(f"fastmtl: unknown command {command!r}; it has {', '.join(_COMMANDS)}.", file=sys.stderr)
        return 2
    try:
        return _COMMANDS[command](rest)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("fastmtl"):
            raise
        command = install_command(error.name or "")
        return _fail(f"{error.name} is not installed: {command}" if command else str(error))
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except (UserError, ValueError, OSError) as error:
        # ValueError and OSError too: what the ops and the file system say of bad input is meant for the user.
        if os.environ.get("FASTMTL_TRACEBACK"):
            raise
        return _fail(" ".join(str(error).split()), 130 if type(error).__name__ == "Interrupted" else 1)


@dataclass(frozen=True)
class TrainArguments:
    """Train RECIPE and leave a run folder."""

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


def _train(arguments: list[str]) -> int:
    import tyro

    if arguments[:1] in (["-h"], ["--help"]):
        arguments = ["demo", "--help"]
    if "--resume" in arguments:
        return _resume(arguments)
    name = _positional(arguments, "train", "RECIPE", f"recipes: {', '.join(list_recipes())}")
    sets, rest = _take_sets(arguments)
    overrides: dict[str, Any] = {}
    for text in sets:
        overrides = merge(overrides, parse_override(text))
    scale, rest = _take_scale(rest)
    recipe = load_recipe(name, overrides, scale)
    default = TrainArguments(loading=recipe.data, optimizer=recipe.optimizer, training=recipe.training)
    parsed = tyro.cli(
        Annotated[TrainArguments, tyro.conf.OmitArgPrefixes],
        args=rest,
        default=default,
        prog=f"fastmtl train {name}",
    )
    values = as_dict(replace(recipe, data=parsed.loading, optimizer=parsed.optimizer, training=parsed.training))
    recipe = load_recipe(name, values)  # once more, so that flags pass the same checks as files
    if parsed.print_config:
        import tomli_w

        print(tomli_w.dumps(as_dict(recipe)), end="")
        return 0
    return _run_training(recipe, parsed)


def _run_training(recipe: Recipe, parsed: TrainArguments) -> int:
    from . import commands

    console = _console()
    out = parsed.out or Path("runs") / f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"
    _show(commands.train(recipe, parsed.data, out, split_file=parsed.split, console=console), out, console)
    return 0


def _resume(arguments: list[str]) -> int:
    """`fastmtl train [RECIPE] --resume --out RUN`: the run's own recipe and data; nothing else can be said."""
    from . import commands

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
    console.print(f"run folder: {out}  (open {out / 'report.html'})")


@dataclass(frozen=True)
class EvalArguments:
    """Print a run's metrics on a data folder as JSON."""

    data: Path
    """A manifest, or a folder such as CLASS/image and CLASS/label."""
    checkpoint: Literal["best", "last"] | None = None
    """The recipe's training.checkpoint when left out."""
    everything: bool = False
    """Also count patients that the run was trained on."""
    tta: tuple[str, ...] | None = None
    """Views besides the image itself to average, h v r90 r180 r270; the recipe's when left out."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def _eval(arguments: list[str]) -> int:
    import tyro

    run = _positional(arguments, "eval", "RUN", "a folder that `fastmtl train` wrote")
    parsed = tyro.cli(EvalArguments, args=arguments, prog="fastmtl eval RUN")
    from . import commands

    found = commands.evaluate(
        Path(run),
        parsed.data,
        which=parsed.checkpoint,
        everything=parsed.everything,
        device=parsed.device,
        tta=parsed.tta,
    )
    print(json.dumps(found, indent=1))
    return 0


@dataclass(frozen=True)
class PredictArguments:
    """Write masks and classes for images or whole slides without labels."""

    out: Path
    """Folder to write: TASK/IMAGE.png or SLIDE/TASK.tif for masks, predictions.jsonl for everything. What it holds of
    the same run and input stays, what is missing is added."""
    checkpoint: Literal["best", "last"] | None = None
    """The recipe's training.checkpoint when left out."""
    tta: tuple[str, ...] | None = None
    """Views besides the image itself to average, h v r90 r180 r270; the recipe's when left out."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def _predict(arguments: list[str]) -> int:
    import tyro

    run = _positional(arguments, "predict", "RUN", "a folder that `fastmtl train` wrote")
    source = _positional(arguments, "predict RUN", "INPUT", "an image or a slide, a folder of them, or a manifest")
    parsed = tyro.cli(PredictArguments, args=arguments, prog="fastmtl predict RUN INPUT")
    from . import commands

    found = commands.predict(
        Path(run),
        Path(source),
        parsed.out,
        which=parsed.checkpoint,
        device=parsed.device,
        tta=parsed.tta,
        note=lambda line: print(line, file=sys.stderr),
    )
    told = f"{found.new} {found.what[:-1] if found.new == 1 else found.what}"
    told += f", {found.there} were there already" if found.there else ""
    told += f", {found.unreadable} could not be read (quarantine.jsonl)" if found.unreadable else ""
    print(f"{told}: {parsed.out / 'predictions.jsonl'}", file=sys.stderr)
    return 1 if found.unreadable else 0


def _report(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fastmtl report", description="Make report.html of one run again, or one page that compares several."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a folder that `fastmtl train` wrote")
    parser.add_argument(
        "--out", type=Path, metavar="PAGE", help="page to write: RUN/report.html when left out; several RUNs need it"
    )
    parser.add_argument(
        "--analyse",
        action="store_true",
        help="make saliency maps, feature maps and filters anew, from the weights each run is judged by and its data",
    )
    parsed = parser.parse_intermixed_args(arguments)
    if len(parsed.runs) > 1 and parsed.out is None:
        return _fail("report of several runs makes a new page; say where: --out PAGE.html", 2)
    from . import commands

    for run in parsed.runs if parsed.analyse else ():
        commands.analyse(run)
    problems = commands.report(parsed.runs, parsed.out)
    for problem in problems:
        print(f"fastmtl: {problem}", file=sys.stderr)
    print(parsed.out or parsed.runs[0] / "report.html")
    return 1 if problems else 0


def _bench(arguments: list[str]) -> int:
    from .benchmarks.run import main as bench

    return bench(arguments)


def _prepare(arguments: list[str]) -> int:
    from .data_commands import prepare

    return prepare(arguments)


def _data(arguments: list[str]) -> int:
    if arguments[:1] != ["check"]:
        wanted = bool(arguments) and arguments[0] in ("-h", "--help")
        print("usage: fastmtl data check PATH [--recipe RECIPE] [--set KEY=VALUE] [--json]", file=sys.stderr)
        return 0 if wanted else 2
    from .data_commands import check

    return check(arguments[1:])


def _recipes(arguments: list[str]) -> int:
    from .reproduce_command import recipes

    return recipes(arguments)


def _reproduce(arguments: list[str]) -> int:
    from .reproduce_command import reproduce

    return reproduce(arguments)


def _models(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    _nothing_more([argument for argument in arguments if argument != "--json"], "models [--json]")
    from . import catalogue

    found = catalogue.rows()
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        from rich.console import Console

        catalogue.show(found, Console())
    return 0


def _doctor(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    _nothing_more([argument for argument in arguments if argument != "--json"], "doctor [--json]")
    from . import doctor

    found = doctor.examine()
    try:
        from rich.console import Console
    except ModuleNotFoundError:  # fastmtl without extras: the ops alone, whose backends are asked about
        Console = None
    if as_json or Console is None:
        print(json.dumps(found, indent=1))
    else:
        doctor.show(found, Console())
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "eval": _eval,
    "predict": _predict,
    "report": _report,
    "prepare": _prepare,
    "data": _data,
    "reproduce": _reproduce,
    "recipes": _recipes,
    "models": _models,
    "bench": _bench,
    "doctor": _doctor,
}


def _positional(arguments: list[str], command: str, what: str, hint: str) -> str:
    """Take the first argument off; a `--help` in its place is left for the command's own parser."""
    if arguments and arguments[0] in ("-h", "--help"):
        return what
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(f"{what} is missing: it comes first, fastmtl {command} {what} ... ({hint}).")
    return arguments.pop(0)


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


def _nothing_more(arguments: list[str], usage: str) -> None:
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: fastmtl {usage}")
        raise SystemExit(0)
    if arguments:
        raise ConfigError(f"usage: fastmtl {usage}; got {' '.join(arguments)!r} as well.")


def _console() -> Any:
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


def _fail(message: str, code: int = 1) -> int:
    rank = os.environ.get("RANK", "0")  # as torchrun sets it
    print(f"fastmtl: {message}" if rank == "0" else f"fastmtl: rank {rank}: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
