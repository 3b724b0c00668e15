"""The names of scores: "TASK", or "SET/TASK" for a task with labels in several data sets."""

from __future__ import annotations

from typing import Any


def score_names(task: Any) -> dict[str, str]:
    """Name of each of the task's scores -> the data set that it is of; "" if there is only one.

    >>> from types import SimpleNamespace
    >>> score_names(SimpleNamespace(name="grade", sets=("colon", "lung")))
    {'colon/grade': 'colon', 'lung/grade': 'lung'}
    >>> score_names(SimpleNamespace(name="grade", sets=("colon",))), score_names(SimpleNamespace(name="grade"))
    ({'grade': 'colon'}, {'grade': ''})
    """
    sets = getattr(task, "sets", ())
    return {f"{one}/{task.name}": one for one in sets} if len(sets) > 1 else {task.name: "".join(sets)}


def set_and_task(name: str) -> tuple[str, str]:
    """The data set of a score, "" if its name has none, and the task.

    >>> set_and_task("colon/grade"), set_and_task("grade")
    (('colon', 'grade'), ('', 'grade'))
    """
    of_set, _, task = name.rpartition("/")
    return of_set, task
