"""The paper's tables beside ours, as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ..builders.selection import chosen_by
from ..training.run_dir import environment, read_lines
from ..utils.atomic_io import write_whole
from ..utils.metric_directions import direction_of
from .cells import GAIN, both, cell, label, metrics_of, number, table, title
from .class_tables import class_tables
from .differences import Evidence, differences_section
from .plan import Result, RunKey
from .scores import TEST, delta_m, metric

_ODD_SHOWN = 20  # notices


def write_tables(
    paper: str, results: Sequence[Result], root: Path, out: Path, scale: str, folds: int, against: str = ""
) -> None:
    """Write table.md and table.csv to `out`; `against` is the row that the others are compared with."""
    out.mkdir(parents=True, exist_ok=True)
    evidence = Evidence.of(results, against)
    write_whole(out / "table.md", markdown(paper, results, root, scale, folds, evidence))
    write_whole(out / "table.csv", table_csv(results, scale, evidence))


def markdown(
    paper: str, results: Sequence[Result], root: Path, scale: str, folds: int, evidence: Evidence | None = None
) -> str:
    """The whole page; without `evidence` it is read from the run folders."""
    first = results[0].row.published.paper
    evidence = evidence or Evidence.of(results)
    parts = [f"# {first.title}", *_setting(results, root, scale, folds, evidence), _main(results, evidence)]
    parts += differences_section(results, evidence.comparisons)
    parts += class_tables(results)
    parts += [part for result in results for part in _by_epoch(result)]
    notes = [f"- {title(r)}: {r.row.published.paper.note}." for r in results if r.row.published.paper.note]
    failures = [f"- {title(r)}, {key}: {text}" for r in results for key, text in sorted(r.failures.items())]
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


def _setting(results: Sequence[Result], root: Path, scale: str, folds: int, evidence: Evidence) -> list[str]:
    """What was trained, and every difference from the published setting."""
    where = environment()
    device = ", ".join(where["gpus"]) or f"{where['processor']}, {where['threads']} threads"
    of = results[0].row.num_folds
    seeds = len({key.seed for result in results for key in (*result.summaries, *result.failures)})
    runs = (f"{folds} of {of} folds" if of > 1 else "one split") + (f", {seeds} seeds" if seeds > 1 else "")
    over = "folds and seeds" if seeds > 1 else "folds"
    brackets = " In brackets: 95% intervals over patients." if evidence.intervals else ""
    protocol = results[0].row.recipe.protocol or "none"
    lines = [
        f"Published figures beside ours. Scale `{scale}`, {runs}, data `{root}`, {device}, torch "
        f"{where['packages']['torch']}, commit {where['commit'] or 'unknown'}.",
        results[0].row.published.paper.caption.strip(),
        f"Protocol `{protocol}`. Ours are means ± standard deviations (n - 1) over {over}, of {_judged(results)}."
        f"{brackets}",
    ]
    changed = _changes(results)
    if changed:
        lines.append(f"**Not the published setting.** At scale `{scale}` the recipes have, published in brackets:\n")
        lines.append("\n".join(changed))
    else:
        lines.append("The recipes ran as published.")
    return [line for line in lines if line]


def _judged(results: Sequence[Result]) -> str:
    """Which weights are judged, and which images chose them; a part for each way, with its rows, if they differ."""
    ways: dict[str, list[str]] = {}
    for result in results:
        recipe = result.row.recipe
        planned = chosen_by(
            recipe,
            inner=recipe.protocol != "published" and recipe.data.inner_fraction > 0,
            test=recipe.data.test_fraction > 0,
        )
        for chosen in [summary.get("chosen_by") for summary in result.summaries.values()] or [planned]:
            way = f"the {recipe.training.checkpoint} epoch's weights, chosen by {chosen or planned}"
            rows = ways.setdefault(way, [])
            rows += [result.row.name] * (result.row.name not in rows)
    if len(ways) == 1:
        return next(iter(ways))
    return "; or of ".join(f"{way} ({', '.join(rows)})" for way, rows in ways.items())


def _changes(results: Sequence[Result]) -> list[str]:
    """A line per changed setting, with its rows unless it applies to all."""
    rows: dict[str, list[str]] = {}
    for result in results:
        for key, (before, after) in result.row.changes.items():
            rows.setdefault(f"- `{key}` = {_plain(after)} ({_plain(before)})", []).append(result.row.name)
    return [line + ("" if len(of) == len(results) else f": {', '.join(of)}") for line, of in rows.items()]


def _main(results: Sequence[Result], evidence: Evidence) -> str:
    keys = metrics_of(results)
    gains = gains_of(results)
    less = {key: ", less is better" * (_direction(results, key) is False) for key in keys}
    known = {key for key in keys if any(cell(result, key).published is not None for result in results)}
    columns = [(key, who) for key in keys for who in ("paper", "ours") if who == "ours" or key in known]
    heads = ["Row", *(f"{label(key)}, {who}{less[key]}" for key, who in columns)]
    if gains:
        heads += ["Δm%, paper", "Δm%, ours over the paper's baselines", "Δm%, ours over our baselines"]
    rows = []
    for result in results:
        texts = {key: both(cell(result, key), len(result.summaries)) for key in keys}
        row = [title(result)]
        for key, who in columns:
            span = evidence.intervals.get((result.row.name, key)) if who == "ours" else None
            row.append(texts[key][who == "ours"] + ("" if span is None else f" [{span.low:.3f}, {span.high:.3f}]"))
        if gains:
            row += [number(gain) for gain in gains[result.row.name]]
        rows.append([*row, _runs(result)])
    return table([*heads, "Runs"], rows)


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


def _gain(result: Result, baselines: Mapping[str, float], runs: Collection[RunKey] | None = None) -> float | None:
    means = {key: score.mean for key in baselines if (score := cell(result, key, runs).ours) is not None}
    ways = {key: way for key in baselines if (way := _direction([result], key)) is not None}
    return delta_m(means, baselines, ways) if len(means) == len(baselines) else None


def _direction(results: Sequence[Result], key: str) -> bool | None:
    """Whether a higher metric is better: from the runs, or from its name if no run has it."""
    task, _, name = key.removeprefix(TEST).partition(".")
    said = [one.get("higher_is_better", {}) for result in results for one in result.summaries.values()]
    return next((ways[task][name] for ways in said if name in ways.get(task, {})), direction_of(key))


def _gain_over_own(result: Result, results: Sequence[Result]) -> float | None:
    """Over the runs that the row and our baseline rows share, since folds differ more than rows."""
    rows = _own_baselines(results)
    runs = _common_runs(result, rows)
    own = {key: base.mean for key, row in rows.items() if (base := cell(row, key, runs).ours) is not None}
    return _gain(result, own, runs) if own and all(own.values()) else None


def _own_baselines(results: Sequence[Result]) -> dict[str, Result]:
    """Metric -> our baseline row for it; empty if one of them is missing."""
    paper, by_name = results[0].row.published.paper, {result.row.name: result for result in results}
    rows = {key: by_name[row] for key, row in paper.baseline_rows.items() if row in by_name}
    return rows if rows.keys() == paper.baselines.keys() else {}


def _common_runs(result: Result, baselines: Mapping[str, Result]) -> list[RunKey]:
    return [
        run
        for run, found in result.summaries.items()
        if all(
            metric(found, key) is not None and metric(row.summaries.get(run, {}), key) is not None
            for key, row in baselines.items()
        )
    ]


_COLUMNS = (
    *("paper", "scale", "row", "recipe", "metric", "published", "published_std", "mean", "std", "folds", "runs"),
    *("low", "high", "against", "difference", "difference_low", "difference_high", "p", "p_corrected"),
)


def _by_epoch(result: Result) -> list[str]:
    """The published training losses by epoch beside ours of the same fold; empty for rows without published ones."""
    paper = result.row.published.paper
    if not paper.epochs:
        return []
    folder = result.folders.get(RunKey(paper.epochs_fold))
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
    return [f"## {title(result)}: training losses by epoch, fold {paper.epochs_fold + 1}\n", table(heads, rows)]


def table_csv(results: Sequence[Result], scale: str, evidence: Evidence | None = None) -> str:
    """A line for each row and metric, with `_COLUMNS`: ours is mean, std (over runs), and low and high (over patients);
    difference is that to the row `against`."""
    text = io.StringIO()
    lines = csv.DictWriter(text, _COLUMNS, restval="", lineterminator="\n")
    lines.writeheader()
    evidence = evidence or Evidence.of(results)
    gains = gains_of(results)
    for result in results:
        recipe = result.row.published
        here = {"paper": recipe.paper.key, "scale": scale, "row": recipe.paper.row, "recipe": recipe.name}
        for key in dict.fromkeys([*metrics_of(results), *recipe.paper.figures]):
            one = cell(result, key)
            if key == GAIN or (one.published is None and one.ours is None):
                continue
            having = [run for run, found in result.summaries.items() if metric(found, key) is not None]
            line = here | {"metric": key, "published": one.published, "published_std": one.spread} | _counts(having)
            if one.ours is not None:
                line |= {"mean": one.ours.mean, "std": one.ours.std}
            lines.writerow(line | _evidence_columns(evidence, result.row.name, key))
        published, over_published, over_own = gains.get(result.row.name, (None, None, None))
        for key, value in ((GAIN, over_published), (f"{GAIN}_over_our_baselines", over_own)):
            having = list(result.summaries) if key == GAIN else _common_runs(result, _own_baselines(results))
            if published is not None or value is not None:
                lines.writerow(here | {"metric": key, "published": published, "mean": value} | _counts(having))
    return text.getvalue()


def _counts(runs: Collection[RunKey]) -> dict[str, int]:
    return {"folds": len({run.fold for run in runs}), "runs": len(runs)}


def _evidence_columns(evidence: Evidence, row: str, key: str) -> dict[str, object]:
    found: dict[str, object] = {}
    if (span := evidence.intervals.get((row, key))) is not None:
        found |= {"low": span.low, "high": span.high}
    comparison = evidence.comparisons.get(key)
    if comparison is not None and row in comparison.differences:
        one = comparison.differences[row]
        found |= {"against": comparison.reference.row.name, "difference": one.value, "p": one.p}
        found |= {"difference_low": one.interval.low, "difference_high": one.interval.high}
        found["p_corrected"] = comparison.corrected[row]
    return found


def _plain(value: object) -> str:
    return "unset" if value is None or value == "" else f"{value}"


def _runs(result: Result) -> str:
    done, failed = len(result.summaries), len(result.failures)
    return f"{done}, {failed} failed" if failed else str(done)
