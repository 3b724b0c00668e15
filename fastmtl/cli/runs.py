"""`fastmtl eval`, `fastmtl predict` and `fastmtl report`: commands that use a trained run."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import api
from .arguments import Parser

_RUN = "a folder that `fastmtl train` wrote"


def _add_model_options(parser: Parser) -> None:
    parser.add_argument(
        "--with",
        nargs="+",
        type=Path,
        default=(),
        dest="others",
        metavar="RUN",
        help="average the network's outputs with those of these runs, for the tasks that all of them have",
    )
    parser.add_argument("--checkpoint", choices=("best", "last"), help="default: the recipe's training.checkpoint")
    parser.add_argument(
        "--tta",
        nargs="*",
        metavar="VIEW",
        help="views to average with the image itself: h v r90 r180 r270 (default: the recipe's)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be 0 or more; got {text}")
    return value


def evaluate(arguments: Sequence[str]) -> int:
    """Score a run and print the metrics as JSON."""
    parser = Parser("eval", "Print a run's metrics on a data folder as JSON.")
    parser.need("RUN", _RUN)
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="a manifest, or a folder such as CLASS/image and CLASS/label",
    )
    parser.add_argument("--everything", action="store_true", help="also count patients that the run was trained on")
    _add_model_options(parser)
    parsed = parser.parse(arguments)
    found = api.evaluate(
        Path(parsed.run),
        parsed.data,
        others=parsed.others,
        which=parsed.checkpoint,
        everything=parsed.everything,
        device=parsed.device,
        tta=parsed.tta,
    )
    print(json.dumps(found, indent=1))
    return 0


def predict(arguments: Sequence[str]) -> int:
    """Predict and print how much was written; returns 1 if a slide or an image could not be read."""
    parser = Parser("predict", "Write masks and classes for images or whole slides without labels.")
    parser.need("RUN", _RUN)
    parser.need("INPUT", "an image, a slide or its URL, a folder of them, or a manifest")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write: TASK/IMAGE.png or SLIDE/TASK.tif for masks, predictions.jsonl for everything; "
        "existing predictions of the same run and input are kept, and missing ones are added",
    )
    parser.add_argument(
        "--on-damaged",
        choices=("raise", "skip"),
        help="unreadable images: refuse to start, or list them in quarantine.jsonl as slides are (default: the "
        "recipe's data.on_damaged)",
    )
    parser.add_argument(
        "--min-area",
        type=_not_negative,
        default=0.0,
        metavar="UM2",
        help="smallest polygon, and hole in one, in the outlines of slides, square micrometres",
    )
    parser.add_argument(
        "--simplify",
        type=_not_negative,
        default=0.0,
        metavar="UM",
        help="simplify the outlines of slides by at most so many micrometres (default: they follow the map's pixels)",
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="also write the probabilities of slides, SLIDE/TASK.ome.tif"
    )
    _add_model_options(parser)
    parsed = parser.parse(arguments)
    found = api.predict(
        Path(parsed.run),
        parsed.input,
        parsed.out,
        others=parsed.others,
        which=parsed.checkpoint,
        device=parsed.device,
        tta=parsed.tta,
        on_damaged=parsed.on_damaged,
        maps=api.MapOptions(parsed.min_area, parsed.simplify, parsed.probabilities),
        note=lambda line: print(line, file=sys.stderr),
    )
    done = f"{found.new} {found.what[:-1] if found.new == 1 else found.what}"
    done += f", {found.there} were there already" if found.there else ""
    done += f", {found.unreadable} could not be read (quarantine.jsonl)" if found.unreadable else ""
    if os.environ.get("RANK", "0") == "0":  # as torchrun sets it
        print(f"{done}: {parsed.out / 'predictions.jsonl'}", file=sys.stderr)
    return 1 if found.unreadable else 0


def report(arguments: Sequence[str]) -> int:
    """Write the page and print its path; returns 1 if a file or run is missing or broken."""
    parser = Parser("report", "Write report.html of one run again, or one page that compares several.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=_RUN)
    parser.add_argument(
        "--out", type=Path, metavar="PAGE", help="page to write (default: RUN/report.html); required for several RUNs"
    )
    parser.add_argument(
        "--analyse",
        action="store_true",
        help="recompute saliency maps, feature maps and filters from the evaluation checkpoint and the run's data",
    )
    parsed = parser.parse(arguments)
    if len(parsed.runs) > 1 and parsed.out is None:
        print("fastmtl: a report of several runs is a new page; add --out PAGE.html", file=sys.stderr)
        return 2
    for run in parsed.runs if parsed.analyse else ():
        api.analyse(run)
    problems = api.report(parsed.runs, parsed.out)
    for problem in problems:
        print(f"fastmtl: {problem}", file=sys.stderr)
    print(parsed.out or parsed.runs[0] / "report.html")
    return 1 if problems else 0
