"""`fastmtl reproduce` and `fastmtl recipes`: train or list the rows of papers' tables."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import Recipe, list_recipes, load_recipe, parse_overrides
from ..utils.optional_imports import MissingExtra
from .arguments import Parser, progress_console


def reproduce(arguments: Sequence[str]) -> int:
    """Train the rows and print the table; returns 1 if a row failed."""
    from ..reproduce import list_papers
    from ..reproduce import reproduce as run
    from ..reproduce.figures import write_figures

    parser = Parser(
        "reproduce",
        "Train the rows of a paper's tables and print them next to the published figures. Running the same command "
        "again keeps finished runs and continues interrupted ones.",
    )
    parser.add_argument("paper", metavar="PAPER", help=", ".join(list_papers()))
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the paper's data, as published")
    parser.add_argument("--out", type=Path, metavar="DIR", help="(default: reproductions/PAPER-SCALE)")
    parser.add_argument("--folds", type=int, metavar="N", help="run only the first N of the paper's folds")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="run each fold with N seeds (default: 1)")
    parser.add_argument(
        "--against", default="", metavar="ROW", help="compare the rows with this one (default: the table's first)"
    )
    parser.add_argument(
        "--scale", default="full", metavar="SCALE", help="tiny (seconds per run), small (minutes), or full"
    )
    parser.add_argument(
        "--rows", nargs="+", default=[], metavar="ROW", help="only these rows; `fastmtl recipes` lists all"
    )
    parser.add_argument(
        "--protocol",
        choices=("unbiased", "published"),
        help="which images may choose the epoch: an inner share of the training patients, so that the scored images "
        "choose nothing (default), or, as published, the scored images",
    )
    parser.add_argument(
        "--samples",
        nargs="+",
        default=["4"],
        metavar="N|NAME",
        help="number of held-out images in the figures, or their names (default: 4; 0: none)",
    )
    parser.add_set("in all rows, for example data.group_by=patient")
    parsed = parser.parse(arguments)
    out = parsed.out or Path("reproductions") / f"{parsed.paper}-{parsed.scale}"
    console = progress_console()
    overrides = parse_overrides(parsed.sets)
    if parsed.protocol:
        overrides["protocol"] = parsed.protocol
    results = run(
        parsed.paper,
        parsed.data,
        out,
        scale=parsed.scale,
        folds=parsed.folds,
        seeds=parsed.seeds,
        against=parsed.against,
        rows=parsed.rows,
        overrides=overrides,
        console=console,
    )
    print((out / "table.md").read_text(encoding="utf-8"), end="")
    try:
        for path in write_figures(results, out, parsed.scale, samples_of(parsed.samples), console.print):
            console.print(f"figure: {path}")
    except MissingExtra as error:
        console.print(f"no figures: {error}")
    console.print(f"table: {out / 'table.md'}, {out / 'table.csv'}")
    return 1 if any(result.failures for result in results) else 0


def samples_of(given: Sequence[str]) -> int | list[str]:
    """A single whole number is a number of images; everything else are names.

    >>> samples_of(["3"]), samples_of(["GT2012149-2-400-001", "7"])
    (3, ['GT2012149-2-400-001', '7'])
    """
    return int(given[0]) if len(given) == 1 and given[0].isdecimal() else list(given)


def recipes(arguments: Sequence[str]) -> int:
    """List the built-in recipes, paper by paper."""
    from ..reproduce import plan

    parser = Parser("recipes", "The built-in recipes, paper by paper.")
    parser.add_argument(
        "paper", nargs="?", default="", metavar="PAPER", help="list only this paper's rows, in the order of its tables"
    )
    parser.add_json()
    parsed = parser.parse(arguments)
    if parsed.paper:
        found = [row(one.published) for one in plan(parsed.paper)]
    else:
        found = [row(load_recipe(name)) for name in list_recipes()]
    if parsed.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)
    return 0


def row(recipe: Recipe) -> dict[str, Any]:
    """A recipe as an entry of the list."""
    paper = recipe.paper
    return {
        "recipe": recipe.name,
        "summary": recipe.summary,
        "paper": paper.key,
        "title": paper.title,
        "table": paper.table,
        "row": paper.row,
        "model": recipe.model["name"],
        "tasks": list(recipe.tasks),
        "balancer": recipe.balancer["name"] if len(recipe.tasks) > 1 else "",
        "stages": [stage.name for stage in recipe.stages],
        "scales": [*recipe.scales, "full"],
        "figures": dict(paper.figures),
        "note": paper.note,
    }


def show(found: Sequence[Mapping[str, Any]]) -> None:
    """Print the list; fits 80 columns."""
    for one in found:
        if not one["paper"]:
            print(_wrapped(f"{one['recipe']:<20} {one['summary']}", 21))
    for paper in dict.fromkeys(one["paper"] for one in found if one["paper"]):
        rows = [one for one in found if one["paper"] == paper]
        keys = list(dict.fromkeys(key for one in rows for key in one["figures"] if ".per_" not in key))
        print()
        print(_wrapped(f"{paper}: {rows[0]['title']}", 2))
        print(_wrapped(f"  figures: {', '.join(keys)}", 11))
        for one in rows:
            figures = " ".join(f"{one['figures'][key]:g}" if key in one["figures"] else "-" for key in keys)
            name = one["recipe"].removeprefix(f"{paper}/")
            print(f"  {name:<21} {one['model']:<23} {how(one):<11} {figures if one['figures'] else '-'}")


def how(one: Mapping[str, Any]) -> str:
    """How an entry's losses are combined: its number of stages, its balancer, or "one task"."""
    if len(one["stages"]) > 1:
        return f"{len(one['stages'])} stages"
    return one["balancer"] or "one task"


def _wrapped(text: str, indent: int) -> str:
    return textwrap.fill(text, 80, subsequent_indent=" " * indent)
