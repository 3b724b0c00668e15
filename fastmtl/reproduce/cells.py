"""Cells of the tables: published values and ours, as numbers and as text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from .plan import Result, RunKey
from .scores import TEST, Score, over_folds

GAIN = "delta_m"
DEEP = (".per_group.", ".per_class.")


@dataclass(frozen=True)
class Cell:
    """A metric of a row: published, its spread, ours."""

    published: float | None
    spread: float | None
    ours: Score | None


def cell(result: Result, metric: str, runs: Collection[RunKey] | None = None) -> Cell:
    """The paper's value and ours of a metric; ours over `runs`, or over all if None."""
    paper = result.row.published.paper
    chosen = [key for key in sorted(result.summaries) if runs is None or key in runs]
    ours = over_folds([result.summaries[key] for key in chosen], metric)
    return Cell(paper.figures.get(metric), paper.spreads.get(metric), ours)


def metrics_of(results: Sequence[Result]) -> list[str]:
    """The metrics of the tables, the paper's first, without per-class metrics and the gain; balanced accuracy beside
    accuracy if a run has it."""
    keys = [key for result in results for key in result.row.published.paper.figures]
    keys += [key for result in results[:1] for key in result.row.published.paper.also]
    keys = [key for key in keys if key != GAIN and not any(deep in key for deep in DEEP)]
    beside = {key: f"{key.removesuffix('accuracy')}balanced_accuracy" for key in keys if key.endswith(".accuracy")}
    known = {key: other for key, other in beside.items() if any(cell(result, other).ours for result in results)}
    return list(dict.fromkeys(one for key in keys for one in (key, known.get(key, key))))


def both(one: Cell, runs: int) -> tuple[str, str]:
    """The published text and ours, with the number of runs if some of `runs` lack the metric."""
    published = "" if one.published is None else f"{one.published:g}"
    published += "" if one.spread is None else f" ± {one.spread:g}"
    if one.ours is None:
        return published, ""
    ours = number(one.ours.mean) + ("" if one.ours.std is None else f" ± {one.ours.std:.3f}")
    has = len(one.ours.values)
    return published, ours if has == runs else f"{ours} ({has} of {runs} runs)"


def title(result: Result) -> str:
    return result.row.published.paper.row or result.row.name


def label(key: str) -> str:
    """`test.mask.per_class.dice` -> "test: mask dice per class"."""
    test, key = key.startswith(TEST), key.removeprefix(TEST)
    task, *rest = key.split(".")
    deep = [one for one in rest if one.startswith("per_")]
    words = " ".join([task, *(one for one in rest if one not in deep), *deep]).replace("_", " ")
    return f"test: {words}" if test else words


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
