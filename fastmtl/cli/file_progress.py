"""Progress over files on standard error: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from ..training.progress import plain

_SECONDS_BETWEEN = 60.0


class FileProgress:
    """Called after each file; a context in which the bar is shown."""

    def __init__(self, console: Console | None = None):
        self.console = plain(console or Console(file=sys.stderr, highlight=False, soft_wrap=True))
        self._said = monotonic()
        self._bar = Progress(
            TextColumn("{task.completed}/{task.total} files"),
            BarColumn(16),
            TimeRemainingColumn(compact=True),
            TextColumn(
                "left  {task.description}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
            console=self.console,
            transient=True,
            expand=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> FileProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int, path: Path) -> None:
        self._bar.update(self._task, completed=done, total=total, description=path.name)
        if not self.console.is_terminal and monotonic() - self._said > _SECONDS_BETWEEN:
            self._said = monotonic()
            self.console.print(f"{done} of {total} files")
