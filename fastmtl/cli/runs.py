"""`fastmtl eval`, `fastmtl predict` and `fastmtl report`: what a run that was trained is asked for."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .arguments import positional


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


def evaluate(arguments: list[str]) -> int:
    """Parse, score, print the JSON."""
    import tyro

    run = positional(arguments, "eval", "RUN", "a folder that `fastmtl train` wrote")
    parsed = tyro.cli(EvalArguments, args=arguments, prog="fastmtl eval RUN")
    from ..api import runs as commands

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


def predict(arguments: list[str]) -> int:
    """Parse, predict, count what was written; 1 where a slide could not be read."""
    import tyro

    run = positional(arguments, "predict", "RUN", "a folder that `fastmtl train` wrote")
    source = positional(arguments, "predict RUN", "INPUT", "an image or a slide, a folder of them, or a manifest")
    parsed = tyro.cli(PredictArguments, args=arguments, prog="fastmtl predict RUN INPUT")
    from ..api import runs as commands

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


def report(arguments: list[str]) -> int:
    """Parse, write the page, say where it is; 1 where something on it is missing or broken."""
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
        print("fastmtl: report of several runs makes a new page; say where: --out PAGE.html", file=sys.stderr)
        return 2
    from ..api import runs as commands

    for run in parsed.runs if parsed.analyse else ():
        commands.analyse(run)
    problems = commands.report(parsed.runs, parsed.out)
    for problem in problems:
        print(f"fastmtl: {problem}", file=sys.stderr)
    print(parsed.out or parsed.runs[0] / "report.html")
    return 1 if problems else 0
