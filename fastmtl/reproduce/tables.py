"""The paper's tables beside ours, as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..builders.selection import chosen_by
from ..training.run_dir import environment, read_lines
from ..utils.atomic_io import write_whole
from ..utils.metric_directions import direction_of
from .plan import Result
from .scores import TEST, Score, delta_m, metric, over_folds

GAIN = "delta_m"
_DEEP = (".per_group.", ".per_class.")
_ODD_SHOWN = 20  # notices


@dataclass(frozen=True)
class Cell:
    """A metric of a row: published, its spread, ours."""

    published: float | None
    spread: float | None
    ours: Score | None


def cell(result: Result, key: str, folds: Collection[int] | None = None) -> Cell:
    """The paper's value and ours of a metric; ours over `folds`, or over all if None."""
    paper = result.row.published.paper
    chosen = [fold for fold in sorted(result.summaries) if folds is None or fold in folds]
    ours = over_folds([result.summaries[fold] for fold in chosen], key)
    return Cell(paper.figures.get(key), paper.spreads.get(key), ours)


def metrics_of(results: Sequence[Result]) -> list[str]:
    """The metrics of the tables, the paper's first, without per-class metrics and the gain."""
    keys = [key for result in results for key in result.row.published.paper.figures]
    keys += [key for result in results[:1] for key in result.row.published.paper.also]
    return [key for key in dict.fromkeys(keys) if key != GAIN and not any(deep in key for deep in _DEEP)]


def write_tables(paper: str, results: Sequence[Result], root: Path, out: Path, scale: str, folds: int) -> None:
    """Write table.md and table.csv to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "table.md", markdown(paper, results, root, scale, folds))
    write_whole(out / "table.csv", table_csv(results, scale))


def markdown(paper: str, results: Sequence[Result], root: Path, scale: str, folds: int) -> str:
    """The whole page."""
    first = results[0].row.published.paper
    parts = [f"# {first.title}", *_setting(results, root, scale, folds), _main(results)]
    parts += _per_class(results)
    parts += [part for result in results for part in _by_epoch(result)]
    notes = [f"- {_title(r)}: {r.row.published.paper.note}." for r in results if r.row.published.paper.note]
    failures = [f"- {_title(r)}, fold {fold}: {text}" for r in results for fold, text in sorted(r.failures.items())]
    parts += ["## Failed\n", "\n".join(failures)] if failures else []
    parts += ["## Notes\n", "\n".join(notes)] if notes else []
    odd = _odd(results)
    parts += ["## Notices\n", "\n".join(odd)] if odd else []
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _odd(results: Sequence[Result]) -> list[str]:
    """The notices of the runs, each once, with its rows unless it applies to all."""
    rows: dict[str, dict[str, None]] = {}
    for result in results:
        for summary in result.summaries.values():
            for notice in summary.get("notices", []):
                rows.setdefault(str(notice), {})[result.row.name] = None
    having = [result for result in results if result.summaries]
    said = [f"- {text}" + ("" if len(of) == len(having) else f" ({', '.join(of)})") for text, of in rows.items()]
    more = len(said) - _ODD_SHOWN
    return said if more <= 0 else [*said[:_ODD_SHOWN], f"- and {more} more, in the runs' summary.json"]


def _setting(results: Sequence[Result], root: Path, scale: str, folds: int) -> list[str]:
    """What was trained, and every difference from the published setting."""
    where = environment()
    device = ", ".join(where["gpus"]) or f"{where['processor']}, {where['threads']} threads"
    of = results[0].row.num_folds
    runs = f"{folds} of {of} folds" if of > 1 else "one split"
    protocol = results[0].row.recipe.protocol or "none"
    lines = [
        f"Published figures beside ours. Scale `{scale}`, {runs}, data `{root}`, {device}, torch "
        f"{where['packages']['torch']}, commit {where['commit'] or 'unknown'}.",
        results[0].row.published.paper.caption.strip(),
        f"Protocol `{protocol}`. Ours are means ± standard deviations (n - 1) over folds, of {_judged(results)}. (1 of "
        "3): of the runs that have the metric, if some do not.",
    ]
    changed = _changes(results)
    if changed:
        lines.append(f"**Not the published setting.** At scale `{scale}` the recipes have, published in brackets:\n")
        lines.append("\n".join(changed))
    else:
        lines.append("The recipes ran as published.")
    return [line for line in lines if line]


def _judged(results: Sequence[Result]) -> str:
    """The protocol, and which images chose the epoch; one part for each way that the rows have."""
    ways: dict[str, None] = {}
    for result in results:
        recipe = result.row.recipe
        planned = chosen_by(
            recipe,
            inner=recipe.protocol != "published" and recipe.data.inner_fraction > 0,
            test=recipe.data.test_fraction > 0,
        )
        for said in [summary.get("chosen_by") for summary in result.summaries.values()] or [planned]:
            ways[f"the {recipe.training.checkpoint} epoch's weights, chosen by {said or planned}"] = None
    return "; or of ".join(ways)


def _changes(results: Sequence[Result]) -> list[str]:
    """A line per changed setting, with its rows unless it applies to all."""
    rows: dict[str, list[str]] = {}
    for result in results:
        for key, (before, after) in result.row.changes.items():
            rows.setdefault(f"- `{key}` = {_plain(after)} ({_plain(before)})", []).append(result.row.name)
    return [line + ("" if len(of) == len(results) else f": {', '.join(of)}") for line, of in rows.items()]


def _main(results: Sequence[Result]) -> str:
    keys = metrics_of(results)
    gains = gains_of(results)
    less = {key: ", less is better" * (_direction(results, key) is False) for key in keys}
    heads = ["Row", *(f"{_label(key)}, {who}{less[key]}" for key in keys for who in ("paper", "ours"))]
    if gains:
        heads += ["Δm%, paper", "Δm%, ours over the paper's baselines", "Δm%, ours over our baselines"]
    rows = []
    for result in results:
        row = [_title(result), *(text for key in keys for text in _both(cell(result, key), len(result.summaries)))]
        if gains:
            row += [_number(gain) for gain in gains[result.row.name]]
        rows.append([*row, _runs(result)])
    return _table([*heads, "Runs"], rows)


def gains_of(results: Sequence[Result]) -> dict[str, tuple[float | None, float | None, float | None]]:
    """Row -> delta_m as published, of our means relative to the published baselines, and to our own baseline rows.

    Rows without all of the metrics have None; empty for papers without baselines.
    """
    baselines = results[0].row.published.paper.baselines
    if not baselines:
        return {}
    return {
        result.row.name: (
            result.row.published.paper.figures.get(GAIN),
            _gain(result, baselines),
            _gain_over_own(result, results),
        )
        for result in results
    }


def _gain(result: Result, baselines: Mapping[str, float], folds: Collection[int] | None = None) -> float | None:
    means = {key: score.mean for key in baselines if (score := cell(result, key, folds).ours) is not None}
    ways = {key: way for key in baselines if (way := _direction([result], key)) is not None}
    return delta_m(means, baselines, ways) if len(means) == len(baselines) else None


def _direction(results: Sequence[Result], key: str) -> bool | None:
    """Whether a higher metric is better: from the runs, or from its name if no run has it."""
    task, _, name = key.removeprefix(TEST).partition(".")
    said = [one.get("higher_is_better", {}) for result in results for one in result.summaries.values()]
    return next((ways[task][name] for ways in said if name in ways.get(task, {})), direction_of(key))


def _gain_over_own(result: Result, results: Sequence[Result]) -> float | None:
    """Over the folds that the row and our baseline rows share, since folds differ more than rows."""
    rows = _own_baselines(results)
    folds = _common_folds(result, rows)
    own = {key: base.mean for key, row in rows.items() if (base := cell(row, key, folds).ours) is not None}
    return _gain(result, own, folds) if own and all(own.values()) else None


def _own_baselines(results: Sequence[Result]) -> dict[str, Result]:
    """Metric -> our baseline row for it; empty if one of them is missing."""
    paper, by_name = results[0].row.published.paper, {result.row.name: result for result in results}
    rows = {key: by_name[row] for key, row in paper.baseline_rows.items() if row in by_name}
    return rows if rows.keys() == paper.baselines.keys() else {}


def _common_folds(result: Result, baselines: Mapping[str, Result]) -> list[int]:
    return [
        fold
        for fold, found in result.summaries.items()
        if all(
            metric(found, key) is not None and metric(row.summaries.get(fold, {}), key) is not None
            for key, row in baselines.items()
        )
    ]


def _per_class(results: Sequence[Result]) -> list[str]:
    """A table per task and score that the paper reports per class; cited rows have no model here."""
    keys = [key for result in results for key in result.row.published.paper.figures]
    families: dict[str, list[str]] = {}
    for key in dict.fromkeys(keys):
        if any(deep in key for deep in _DEEP):
            families.setdefault(key.rpartition(".")[0], []).append(key)
    parts = []
    for family, members in families.items():
        rows = []
        for result in results:
            for who, place in (("paper", 0), ("ours", 1)):
                texts = [_both(cell(result, key), len(result.summaries))[place] for key in members]
                if any(texts):
                    rows.append([f"{_title(result)}, {who}", *texts])
        cited = results[0].row.published.paper.cited
        rows += [
            [f"{name}, cited by the paper", *(_number(of.get(key)) for key in members)] for name, of in cited.items()
        ]
        parts += [f"## {_label(family)}\n", _table(["Row", *(key.rpartition(".")[2] for key in members)], rows)]
    return parts


def _by_epoch(result: Result) -> list[str]:
    """The published training losses by epoch beside ours of the same fold; empty for rows without published ones."""
    paper = result.row.published.paper
    if not paper.epochs:
        return []
    folder = result.folders.get(paper.epochs_fold)
    records = [] if folder is None else read_lines(folder / "metrics.jsonl")[0]
    ours = [record["loss"] for record in records]
    heads = ["Epoch", *(f"{task}, {who}" for task in paper.epochs for who in ("paper", "ours"))]
    rows = []
    for epoch in range(max(len(ours), *map(len, paper.epochs.values()))):
        row = [str(epoch + 1)]
        for task, losses in paper.epochs.items():
            row.append(f"{losses[epoch]:.6g}" if epoch < len(losses) else "")
            row.append(f"{ours[epoch][task]:.6g}" if epoch < len(ours) and task in ours[epoch] else "")
        rows.append(row)
    return [f"## {_title(result)}: training losses by epoch, fold {paper.epochs_fold + 1}\n", _table(heads, rows)]


def table_csv(results: Sequence[Result], scale: str) -> str:
    """A line for each row and metric: paper, scale, row, recipe, metric, published, published_std, mean, std, folds."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["paper", "scale", "row", "recipe", "metric", "published", "published_std", "mean", "std", "folds"])
    gains = gains_of(results)
    for result in results:
        recipe = result.row.published
        here = [recipe.paper.key, scale, recipe.paper.row, recipe.name]
        for key in dict.fromkeys([*metrics_of(results), *recipe.paper.figures]):
            if key == GAIN:
                continue
            one = cell(result, key)
            ours = ("", "", 0) if one.ours is None else (one.ours.mean, one.ours.std, len(one.ours.values))
            if one.published is not None or one.ours is not None:
                lines.writerow([*here, key, one.published, one.spread, *ours])
        published, over_published, over_own = gains.get(result.row.name, (None, None, None))
        for key, value in ((GAIN, over_published), (f"{GAIN}_over_our_baselines", over_own)):
            folds = len(result.summaries) if key == GAIN else len(_common_folds(result, _own_baselines(results)))
            if published is not None or value is not None:
                lines.writerow([*here, key, published, "", value, "", folds])
    return text.getvalue()


def _both(one: Cell, runs: int) -> tuple[str, str]:
    """The published text and ours, with the number of runs if some of `runs` lack the metric."""
    published = "" if one.published is None else f"{one.published:g}"
    published += "" if one.spread is None else f" ± {one.spread:g}"
    if one.ours is None:
        return published, ""
    ours = _number(one.ours.mean) + ("" if one.ours.std is None else f" ± {one.ours.std:.3f}")
    has = len(one.ours.values)
    return published, ours if has == runs else f"{ours} ({has} of {runs})"


def _runs(result: Result) -> str:
    done, failed = len(result.summaries), len(result.failures)
    return f"{done}, {failed} failed" if failed else str(done)


def _title(result: Result) -> str:
    return result.row.published.paper.row or result.row.name


def _label(key: str) -> str:
    """`test.mask.per_class.dice` -> "test: mask dice per class"."""
    test, key = key.startswith(TEST), key.removeprefix(TEST)
    task, *rest = key.split(".")
    deep = [one for one in rest if one.startswith("per_")]
    words = " ".join([task, *(one for one in rest if one not in deep), *deep]).replace("_", " ")
    return f"test: {words}" if test else words


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _plain(value: object) -> str:
    return "unset" if value is None or value == "" else f"{value}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
