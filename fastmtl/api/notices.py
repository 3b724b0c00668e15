"""Notices about a run, one line each: problems of its data, targets with a single value, scores that are too good.

Notices are printed during training and stored in summary.json and in the report.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from .. import data
from ..ops.core.backends import gpu_fallbacks
from ..protocols import MAPS, Batch, Task
from ..utils.score_names import score_names
from ..utils.words import counted

_HELD_OUT = "held-out images"


def of_problems(problems: Iterable[data.Problem], root: Path) -> list[str]:
    """Each problem once; paths inside the data folder are relative to it."""
    home = os.path.abspath(root if root.is_dir() else root.parent)
    return list(dict.fromkeys(f"{_below(problem.path, home)}: {problem.reason}" for problem in problems))


def of_fallbacks(device: torch.device, *, fused_step: bool, stains: bool) -> list[str]:
    """What `device` does more slowly because something is not installed; nothing on a CPU.

    Args:
        fused_step: whether the run may take the fused optimizer step.
        stains: whether it estimates stains.
    """
    wanted = {"cuda": fused_step, "cupy": stains}
    found = gpu_fallbacks() if device.type == "cuda" else {}
    return [f"{note}; `fastmtl doctor` shows all backends" for backend, note in found.items() if wanted[backend]]


def lines(notices: Iterable[tuple[Path | str, str]]) -> list[str]:
    """One line per reason: reasons of several files that differ only in numbers become one line with the first file."""
    groups: dict[tuple[str, int], dict[Path | str, str]] = {}
    count: Counter[tuple[Path | str, str]] = Counter()
    for path, reason in dict.fromkeys(notices):
        alike = re.sub(r"\d+", "0", reason)
        groups.setdefault((alike, count[path, alike]), {})[path] = reason
        count[path, alike] += 1
    found = []
    for own in groups.values():
        (path, reason), others = next(iter(own.items())), len(own) - 1
        more = f" and {counted(others, 'other')}" if others else ""
        found.append(f"{path}{more}: {reason}")
    return found


def _below(path: Path, home: str) -> str:
    if "://" in str(path) or (not path.is_absolute() and not path.exists()):
        return str(path)
    where = os.path.relpath(os.path.abspath(path), home)
    if where == os.curdir:
        return Path(home).name or home
    return str(path) if where.split(os.sep)[0] == os.pardir else Path(where).as_posix()


def of_targets(tasks: Sequence[Task], dataset: data.Dataset, side: str) -> list[str]:
    """Tasks whose labels or numbers in `dataset` (the `side` images) are missing or all equal; opens no image."""
    said = []
    for task in tasks:
        kind, column = task.target.kind, task.target.column
        if not dataset.tiles or not _is_scored(task) or kind not in ("label", "number", "vector", "box"):
            continue
        values = [data.label_of(tile, column) if kind == "label" else tile.values.get(column) for tile in dataset.tiles]
        known = [value for value in values if value is not None]
        if not known:
            said.append(f"task {task.name!r}: none of the {len(values)} {side} images has a value for it")
        elif len(set(known)) == 1:
            names = getattr(task, "class_names", ())
            value = repr(names[known[0]]) if kind == "label" and known[0] < len(names) else known[0]
            what = _all(len(known), side, "label" if kind == "label" else "value")
            said.append(f"task {task.name!r}: {what} {value}: {_consequence(side, task)}")
    return said


class MapsSeen:
    """The `visit` of `eval_loop.evaluate` that records which structures appear in the masks of each scored task."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = [task for task in tasks if _is_scored(task) and task.target.kind in MAPS]
        self._counts = {task.name: 0 for task in self._tasks}
        self._there: dict[str, Tensor] = {}  # bool [C], on the masks' device, so that the host does not wait for it
        self._full: dict[str, Tensor] = {}

    def __call__(self, batch: Batch, outputs: Mapping[str, object]) -> None:
        """Add a batch."""
        for task in self._tasks:
            rows = batch.has_label[:, task.column]
            target = batch.targets[task.name][rows]
            if not len(target):
                continue
            if task.target.kind == "classes":
                classes = range(task.output.channels)
                there = torch.stack([(target == index).any() for index in classes])
                full = torch.stack([(target == index).all() for index in classes])
            else:
                there, full = target.amax((0, 2, 3)) > 0, target.amin((0, 2, 3)) > 0
            self._counts[task.name] += len(target)
            self._there[task.name] = there | self._there.get(task.name, there)
            self._full[task.name] = full & self._full.get(task.name, full)

    def notices(self, side: str) -> list[str]:
        """Tasks whose masks of the `side` images are missing, empty, full, or never show a structure."""
        return [f"task {task.name!r}: {words}" for task in self._tasks if (words := self._words(task, side))]

    def _words(self, task: Task, side: str) -> str:
        count = self._counts[task.name]
        if not count:
            return f"none of the {side} images has a mask for it"
        there, full = self._there[task.name].tolist(), self._full[task.name].tolist()
        names = getattr(task, "structures", ()) if task.target.kind != "mask" else (task.name,)
        names = names if len(names) == len(there) else tuple(map(str, range(len(there))))
        first = int(task.target.kind == "classes")  # the background is not a structure
        absent = [name for name, seen in zip(names[first:], there[first:], strict=True) if not seen]
        everywhere = [name for name, whole in zip(names, full, strict=True) if whole]
        if len(absent) == len(names) - first:
            return f"{_all(count, side, 'mask')} empty: {_consequence(side, task)}; {_CHECK}"
        if everywhere:
            where = "foreground" if len(names) == 1 else " and ".join(map(repr, everywhere))
            return f"{_all(count, side, 'mask')} {where} everywhere: {_consequence(side, task)}; {_CHECK}"
        if absent:
            scores = {"one": "1 where nothing is predicted", "zero": "0", "skip": "nothing"}
            worth = scores.get(getattr(task, "empty", ""), "nothing")
            return f"no {side} mask shows {' or '.join(map(repr, absent))}, which counts as {worth}"
        return ""


_CHECK = "check the mask files, and the values in them"


def of_scores(tasks: Sequence[Task], found: Mapping[str, Any], side: str) -> list[str]:
    """Tasks whose primary metric is 1.000 in `found`, the result of `eval_loop.evaluate` on the `side` images."""
    where = f"on {counted(found['num_images'], f'{side} image')}"
    return [notice for task in tasks if (notice := _too_good(task, found, where))]


def of_epochs(
    tasks: Sequence[Task], found: Mapping[str, Any], records: Sequence[Mapping[str, Any]], watching: str = _HELD_OUT
) -> list[str]:
    """Tasks whose primary metric was 1.000 after an epoch of `records` (metrics.jsonl) but not in `found`, the final
    scores: `ScoreWatch` has printed these notices. `watching` names the images of the records."""
    after = [
        [_after_epoch(task, record, watching) for record in records] for task in tasks if not _too_good(task, found, "")
    ]
    return [first for notices in after if (first := next(filter(None, notices), ""))]


def of_skipped_steps(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many steps of `records` (metrics.jsonl) did not train, if any.

    >>> of_skipped_steps([{"epoch": 1, "skipped": 2}, {"epoch": 2, "skipped": 0}, {"epoch": 3}])
    ['2 training steps were skipped, in epoch 1: a loss or gradient was not finite, or a spike; see RUN/nonfinite']
    """
    found = {record.get("epoch"): count for record in records if isinstance(count := record.get("skipped"), int)}
    found = {epoch: count for epoch, count in found.items() if count}
    if not found:
        return []
    steps = "1 training step was" if sum(found.values()) == 1 else f"{sum(found.values())} training steps were"
    epochs = f"epoch{'s' * (len(found) > 1)} {', '.join(map(str, found))}"
    return [f"{steps} skipped, in {epochs}: a loss or gradient was not finite, or a spike; see RUN/nonfinite"]


def of_reused_tiles(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether the large tiles of slides were decoded again and again in the last epoch of `records`.

    >>> of_reused_tiles([{"epoch": 1, "reused_tiles": 0.9375}])
    []
    """
    reused = records[-1].get("reused_tiles") if records else None
    if not isinstance(reused, int | float) or reused >= 0.5:
        return []
    return [
        "the slides have tiles much larger than the regions read from them, and only "
        f"{reused:.0%} were reused: each region decodes a whole tile. Set data.open_slides to a few slides, whose "
        "regions then follow each other, or raise data.tile_cache"
    ]


class ScoreWatch:
    """An observer of the trainer: prints a notice, once per task, if a score of the images called `watching` after an
    epoch is too good."""

    def __init__(self, tasks: Sequence[Task], console: Console, watching: str = _HELD_OUT) -> None:
        self._tasks, self._console, self._watching = list(tasks), console, watching

    def on_step(self, step: int, epoch: int, batch: int, num_batches: int, record: Mapping[str, object]) -> None:
        """Do nothing."""

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """Check the validation scores."""
        for task in list(self._tasks):
            if notice := _after_epoch(task, record, self._watching):
                self._tasks.remove(task)
                self._console.print(f"note: {notice}", markup=False)


def _after_epoch(task: Task, record: Mapping[str, Any], watching: str) -> str:
    return _too_good(task, record.get("validation", {}), f"on the {watching} after epoch {record.get('epoch')}")


def _too_good(task: Task, found: Mapping[str, Any], where: str) -> str:
    """The notice on a primary metric of 1.000 in `found`; "" if it is lower or missing."""
    scores = found.get("tasks", {}) if _is_scored(task) else {}
    perfect = {name: scores.get(name, {}).get(task.primary_metric) for name in score_names(task)}
    perfect = {name: one for name, one in perfect.items() if isinstance(one, int | float) and f"{one:.3f}" == "1.000"}
    if not perfect:
        return ""
    name, score = next(iter(perfect.items()))
    exactly = "exactly 1.000" if score == 1 else "1.000, rounded,"
    return (
        f"task {name!r}: {task.primary_metric} is {exactly} {where}: too good to be true; check that masks and "
        "labels are correct, that no patient is on both sides, and that nothing in the images reveals the answer"
    )


def _is_scored(task: Task) -> bool:
    """Whether this task counts for the run's score; other tasks are auxiliary."""
    return bool(task.primary_metric)


def _all(count: int, side: str, what: str) -> str:
    """The beginning of a sentence about all `count` items."""
    return f"the one {side} {what} is" if count == 1 else f"all {count} {side} {what}s are"


def _consequence(side: str, task: Task) -> str:
    return "there is nothing to learn" if side == "training" else f"{task.primary_metric} says nothing"
