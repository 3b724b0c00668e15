"""Progress of a training on standard error: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from ..utils.json_toml import JsonMapping
from ..utils.words import counted


def plain(console: Console) -> Console:
    """The console without markup and emoji, so that paths and names are printed unchanged. A line that cannot be
    printed, to a file on a full disk or to a terminal that is gone, is dropped: the run folder has the records."""

    def print_unchanged(*objects: Any, **options: Any) -> None:
        try:
            console.print(*objects, **{"markup": False, "emoji": False, **options})
        except BrokenPipeError:
            raise
        except OSError:
            pass

    twin = copy.copy(console)
    twin.print = print_unchanged  # type: ignore[method-assign]
    return twin


class ProgressLine:
    """An observer of the trainer: images/s, share of time waiting for data, loss per task, time left."""

    def __init__(self, epochs: int, console: Console | None = None, watching: str = "held out"):
        self.console = plain(console or Console(file=sys.stderr, highlight=False, soft_wrap=True))
        self.epochs, self.watching = epochs, watching
        self._bar: Progress | None = None
        self._last: JsonMapping = {}  # record of the last epoch

    def on_step(self, step: int, epoch: int, batch: int, num_batches: int, record: JsonMapping) -> None:
        if not self.console.is_terminal:
            return
        done = epoch * num_batches + batch
        if self._bar is None:
            # A single line also on a narrow terminal: text that does not fit (the last tasks' losses) is cut off.
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(16),
                TimeRemainingColumn(compact=True),
                TextColumn(
                    "left  {task.fields[seen]}",
                    markup=False,
                    table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
                ),
                console=self.console,
                transient=True,
                expand=True,  # the last column gets the remaining width; otherwise the others would be cut
            )
            # A resumed run starts in the middle: counting from 0 would underestimate the time left.
            self._task = self._bar.add_task("", total=self.epochs * num_batches, completed=done, seen="")
            self._bar.start()
        losses = "  ".join(f"{name} {value:.3f}" for name, value in record["loss"].items())
        shares = f"  |  {shares}" if (shares := _shares(record)) else ""
        self._bar.update(
            self._task,
            completed=done,
            description=f"epoch {epoch + 1}/{self.epochs}",
            seen=f"{_speed(record)}{_skipped(record)}  {losses}{shares}",
        )

    def on_epoch(self, record: JsonMapping) -> None:
        losses = "  ".join(f"{name} {value:.3f}" for name, value in record["loss"].items())
        scores = ""
        if "validation" in record:
            tasks = record["validation"]["tasks"]
            scores = f"  |  {self.watching}: " + "  ".join(_scores(tasks))
        stage = f"{record['stage']}: " if "stage" in record else ""
        self.console.print(
            f"{stage}epoch {record['epoch']:>{len(str(self.epochs))}}/{self.epochs}  loss: {losses}{scores}  |  "
            f"{_speed(record)}{_skipped(record)}"
        )
        self._last = record

    def on_restore(self, step: int, epoch: int, why: str) -> None:
        self.console.print(f"{why} Back to epoch {epoch + 1}, step {step}.")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if shares := _shares(self._last, waiting=True):
            self.console.print(f"time of epoch {self._last['epoch']}: {shares}")
        self._last = {}


def _speed(record: JsonMapping) -> str:
    reused = f", {record['reused_tiles']:.0%} of large tiles reused" if "reused_tiles" in record else ""
    return f"{record['images_per_second']:.0f} images/s, {record['waiting']:.0%} waiting for data{reused}"


def _shares(record: JsonMapping, *, waiting: bool = False) -> str:
    """The phases of at least 1% of the time, without `waiting` for data, which `_speed` shows too; memory traffic and
    memory."""
    shares = [(name, share) for name, share in record.get("time", {}).items() if waiting or name != "loader"]
    parts = [part for name, share in shares if not (part := f"{name} {share:.0%}").endswith(" 0%")]
    if "update_gb_per_second" in record:
        parts.append(f"update {record['update_gb_per_second']:.3g} GB/s")
    if "memory_bytes" in record:
        parts.append(f"{record['memory_bytes'] / 2**30:.1f} GiB")
    return ", ".join(parts)


def _skipped(record: JsonMapping) -> str:
    count = record.get("skipped", 0)
    return f", {counted(count, 'step')} skipped" if count else ""


def _scores(tasks: Mapping[str, JsonMapping]) -> list[str]:
    """Metric and value of each task; with the task's name if another task has a metric of that name."""
    shared = Counter(metric for values in tasks.values() for metric in values)
    return [
        f"{f'{task} ' if shared[metric] > 1 else ''}{metric} {value:.3f}"
        for task, values in tasks.items()
        for metric, value in values.items()
        if isinstance(value, float)
    ]
