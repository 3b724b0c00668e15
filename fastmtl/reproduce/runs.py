"""Per-image results of a row's runs, as statistics that can be resampled over patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.bootstrap import Statistic
from ..evaluation.per_image import FILE, TEST_FILE
from ..evaluation.statistics import checked_statistic
from ..training.run_dir import read_lines
from ..utils.json_toml import JsonObject
from .plan import Result, RunKey
from .scores import TEST, metric


class ImageResults:
    """The lines of evaluation.jsonl and evaluation-test.jsonl of all runs, each file read once."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._lines = {
            (result.row.name, key): {
                file: [line for line in read_lines(folder / file)[0] if _is_whole(line)] for file in (FILE, TEST_FILE)
            }
            for result in results
            for key, folder in result.folders.items()
        }
        self._known: dict[tuple[str, RunKey, str], Statistic | None] = {}

    def lines(self, result: Result, key: RunKey, *, test: bool = False) -> list[JsonObject]:
        """Of the held-out images of a run, or of the test images; [] if it has none."""
        return self._lines.get((result.row.name, key), {}).get(TEST_FILE if test else FILE, [])

    def statistics(self, result: Result, name: str) -> dict[RunKey, Statistic]:
        """Of a metric (TASK.METRIC or test.TASK.METRIC), for the runs whose images give the run's own value."""
        found: dict[RunKey, Statistic] = {}
        for key, summary in sorted(result.summaries.items()):
            place = (result.row.name, key, name)
            if place not in self._known:
                task, _, rest = name.removeprefix(TEST).partition(".")
                lines = self.lines(result, key, test=name.startswith(TEST))
                self._known[place] = checked_statistic(lines, task, rest, metric(summary, name))
            if (known := self._known[place]) is not None:
                found[key] = known
        return found

    def images(self, result: Result, key: RunKey, name: str) -> frozenset[str]:
        """Ids of the images that a metric is of."""
        task = name.removeprefix(TEST).partition(".")[0]
        lines = self.lines(result, key, test=name.startswith(TEST))
        return frozenset(line["id"] for line in lines if task in line["tasks"])


def _is_whole(line: Mapping[str, Any]) -> bool:
    tasks = line.get("tasks")
    if not isinstance(line.get("id"), str) or not isinstance(tasks, dict):
        return False
    return all(isinstance(entry, dict) for entry in tasks.values())
