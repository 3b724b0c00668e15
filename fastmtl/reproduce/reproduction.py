"""Train the rows of a paper fold by fold; keep finished runs and continue interrupted ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import api
from ..builders import datasets
from ..builders.splits import split_of
from ..config import ConfigError, Recipe
from ..config.resuming import differences
from ..training.errors import Interrupted
from ..training.file_lock import locked
from ..training.progress import plain
from ..training.run_dir import RunError, RunFolder
from ..utils.json_toml import read_json
from ..utils.suggestions import nearest
from ..utils.words import counted
from .plan import Result, Row, RunKey, plan, rows_of
from .tables import write_tables

_LOOKS = (
    "training.log_every",
    "training.gradient_stats_every",
)  # settings that are recorded without affecting the training


def reproduce(
    paper: str,
    root: Path,
    out: Path,
    *,
    scale: str = "full",
    folds: int | None = None,
    seeds: int = 1,
    against: str = "",
    rows: Sequence[str] = (),
    overrides: Mapping[str, object] | None = None,
    console: Console,
) -> list[Result]:
    """Train the rows of `paper` on the data under `root`, and write runs, tables and figures to `out`.

    All rows of a fold are trained before the next fold, and all folds before the next seed, so that after an
    interruption rows have nearly the same runs.
    Calling it again with the same arguments keeps finished runs and continues interrupted ones. A failed row is
    reported in the tables, and the others continue. The tables also include rows trained earlier with the same
    settings, independent of `rows`.

    Args:
        paper: one of `list_papers()`.
        root: its data.
        out: folder of this reproduction, with run folders ROW/fold-N and ROW/fold-N-seed-M, table.md, table.csv, *.png.
        scale: "full" is the published setting.
        folds: number of folds to run, from the first; all if None.
        seeds: number of times to run each fold, with training.seed, training.seed + 1, ...
        against: the row with which the others are compared; the first row of the table if empty.
        rows: names of the rows to train; all of the paper if empty.
        overrides: merged into every recipe, for example {"data": {"group_by": "patient"}}.
        console: where progress is printed.

    Raises:
        ConfigError: unknown names, data of another paper, a fold without one of the classes, or runs in `out`
            with other settings; before any training.
        RunError: another process reproduces into `out`.
        Interrupted: stopped on request; finished runs are in the tables.
    """
    console = plain(console)
    planned = plan(paper, scale=scale, rows=rows, overrides=overrides)
    count = _num_folds(paper, planned, folds)
    if seeds < 1:
        raise ConfigError(f"--seeds must be 1 or more; got {seeds}.")
    if against and against not in rows_of(paper):
        raise ConfigError(f"--against: {paper} has no row {against!r}; {nearest(against, rows_of(paper))}")
    _check_data(planned[0], root, count)
    keys = [RunKey(fold, seed) for seed in range(seeds) for fold in range(count)]
    for row in planned:
        for key in keys:
            _check_kept(row.run(key), root, _folder(out, row, key))
    asked = [row.name for row in planned]
    out.mkdir(parents=True, exist_ok=True)
    # Two processes would overwrite each other's runs, and treat them as interrupted ones.
    with locked(out, f"another process reproduces into {out}; wait for its end, or choose another --out."):
        others = _others(paper, asked, scale, overrides, root, out, keys)
        shown = plan(paper, scale=scale, rows=[*asked, *others], overrides=overrides)
        if against and against not in [row.name for row in shown]:
            raise ConfigError(f"--against: {against} is neither among the --rows nor in {out}; add it to --rows.")
        results = [Result(row) for row in shown]
        for result in results:
            for key in keys if result.row.name in asked else others[result.row.name]:
                _keep(result, key, _folder(out, result.row, key))
        folds_of = f"{count} of {planned[0].num_folds} folds" + (f", {seeds} seeds" if seeds > 1 else "")
        console.print(f"{paper} at scale {scale}: {counted(len(planned), 'row')}, {folds_of}, in {out}")
        if others:
            console.print(f"in the table too, trained before: {', '.join(others)}")
        # So that finished runs are in the table after any interruption.
        write_tables(paper, results, root, out, scale, count, against)
        try:
            for key in keys:
                for result in results:
                    if result.row.name in asked:
                        _run(result, key, root, _folder(out, result.row, key), console)
                        write_tables(paper, results, root, out, scale, count, against)
        except Interrupted as stopped:
            where = str(stopped).partition(";")[0]
            raise Interrupted(f"{where}; the same command continues, finished runs are kept in {out}") from None
    return results


def _num_folds(paper: str, rows: Sequence[Row], asked: int | None) -> int:
    most = rows[0].num_folds
    if asked is None:
        return most
    if not 1 <= asked <= most:
        has = f"{most} folds" if most > 1 else "one split and no folds"
        raise ConfigError(f"--folds must be 1 to {most}: {paper} has {has}; got {asked}. Change data.folds with --set.")
    return asked


def _folder(out: Path, row: Row, key: RunKey) -> Path:
    return out / row.name / key.folder


def _check_data(row: Row, root: Path, folds: int) -> None:
    """Raise ConfigError for data of another paper, or folds without a class; opens no image."""
    paper = row.published.paper
    datasets.check_format(root, paper.formats, paper.key)
    folder = datasets.limited(row.recipe, datasets.read_data(row.recipe, root))
    if paper.classes and set(folder.class_names) != set(paper.classes):
        raise ConfigError(
            f"{paper.key} has the classes {', '.join(sorted(paper.classes))}; {root} has "
            f"{', '.join(folder.class_names)}: it is not the paper's data set."
        )
    splits = [split_of(row.run(RunKey(fold)), folder, root) for fold in range(folds)]
    if len({split.val for split, _ in splits}) < folds:
        raise ConfigError(
            f"{root} has one split for the {folds} folds, {splits[0][1]}: their runs would be the same; add --folds 1."
        )


def _check_kept(recipe: Recipe, root: Path, folder: Path) -> None:
    """Raise ConfigError if `folder` is a run with other settings or data."""
    run = RunFolder(folder)
    if not run.exists:
        return
    for key, (before, now) in differences(run.recipe(), recipe).items():
        if key not in _LOOKS:
            raise ConfigError(
                f"{folder} is a run with {key} = {before!r}, and now it is {now!r}; choose another --out, or remove it."
            )
    data = run.extra()["data"]
    if Path(data) != root.resolve():
        raise ConfigError(f"{folder} is a run on {data}, and now the data is {root}; choose another --out.")


def _others(
    paper: str,
    asked: Sequence[str],
    scale: str,
    overrides: Mapping[str, object] | None,
    root: Path,
    out: Path,
    keys: Sequence[RunKey],
) -> dict[str, list[RunKey]]:
    """Other rows in `out` -> their finished runs of the same settings and data."""
    found: dict[str, list[RunKey]] = {}
    for row in rows_of(paper):
        for key in keys if row not in asked and (out / row).is_dir() else ():
            try:
                (one,) = plan(paper, scale=scale, rows=[row], overrides=overrides)
                folder = _folder(out, one, key)
                _check_kept(one.run(key), root, folder)
                if _finished(folder) is not None:
                    found.setdefault(row, []).append(key)
            except (ConfigError, RunError):  # other settings or damage: reported when the row is requested
                continue
    return found


def _keep(result: Result, key: RunKey, folder: Path) -> None:
    """Add the run in `folder` to the result if it is finished."""
    try:
        summary = _finished(folder)
    except RunError as error:
        result.failures[key] = _line(error)
        return
    if summary is not None:
        result.summaries[key], result.folders[key] = summary, folder


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _run(result: Result, key: RunKey, root: Path, folder: Path, console: Console) -> None:
    what = f"{result.row.name}, {key}"
    if key in result.summaries:
        console.print(f"{what}: kept")
        return
    if key in result.failures:  # a damaged summary
        console.print(f"{what} failed: {result.failures[key]}")
        return
    console.print(what, style="bold")
    try:
        summary = _train(result.row.run(key), root, folder, console)
    except Interrupted:
        raise
    except Exception as error:  # the other rows continue; the table and the exit code show it
        result.failures[key] = _line(error)
        console.print(f"{what} failed: {result.failures[key]}")
    else:
        result.summaries[key], result.folders[key] = summary, folder


def _finished(folder: Path) -> dict[str, Any] | None:
    path = folder / "summary.json"
    if not path.is_file():
        return None
    try:
        found = read_json(path)
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}. Remove {folder} to train it again.") from error
    if not isinstance(found, dict) or not isinstance(found.get("tasks"), dict):
        raise RunError(f'{path} is damaged: it has no "tasks". Remove {folder} to train it again.')
    return found


def _train(recipe: Recipe, root: Path, folder: Path, console: Console) -> dict[str, Any]:
    if RunFolder(folder).exists:
        return api.resume(folder, console=console)
    return api.train(recipe, root, folder, console=console)
