"""Tasks by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, TypeVar

from ..utils.suggestions import check_options, nearest, option_names

TaskClass = TypeVar("TaskClass", bound=type)
_TASKS: dict[str, type] = {}
_GIVEN = ("name", "column", "class_names", "groups")


def register_task(kind: str) -> Callable[[TaskClass], TaskClass]:
    """Class decorator: makes a task available to recipes as `kind`.

    Its constructor takes (name, column, **options), see `Task`. If it has a parameter `class_names` or `groups`, it
    receives those of the data set, as passed to `create_task`. Packages declare their tasks in the entry-point group
    "fastmtl.tasks"; they are imported when a recipe uses an unknown kind.
    """

    def decorate(task: TaskClass) -> TaskClass:
        _TASKS[kind] = task
        return task

    return decorate


def list_tasks() -> list[str]:
    """The registered kinds, sorted, including those of installed packages."""
    return sorted({*_TASKS, *(entry.name for entry in entry_points(group="fastmtl.tasks"))})


def create_task(
    kind: str,
    name: str,
    column: int,
    *,
    class_names: Sequence[str] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
    **options: Any,
) -> Any:
    """Build a registered task.

    Args:
        kind: one of `list_tasks()`.
        name: the task's key in `Batch.targets` and in the model's outputs.
        column: its column in `Batch.has_label`.
        class_names: the data set's classes, for kinds that predict classes.
        groups: class names of the data set's label columns, for options that name one (`group_by`).
        options: keyword arguments specific to the kind.

    Raises:
        ValueError: unknown kind or option; the message lists the nearest.
    """
    check_task(kind, name, options)
    names, others = option_names(_TASKS[kind])
    known = {"class_names": class_names, "groups": groups or {}}
    known = {key: value for key, value in known.items() if others or key in names}
    try:
        return _TASKS[kind](name, column, **known, **options)
    except TypeError as error:  # an option of another type: "8" for 8
        raise ValueError(f"task {name!r} ({kind}) cannot be built with {options}: {error}") from error


def target_kind(kind: str) -> str | None:
    """The `Target.kind` of all tasks of this registered kind; None if it depends on the options."""
    return getattr(getattr(_TASKS.get(kind), "target", None), "kind", None)


def check_task(kind: str, name: str, options: Iterable[str]) -> None:
    """Raise ValueError, as `create_task` would, for an unknown kind or option."""
    if kind not in _TASKS:
        for entry in entry_points(group="fastmtl.tasks", name=kind):
            try:
                register_task(kind)(entry.load())
            except Exception as error:  # importing third-party code may raise anything
                package = entry.dist.name if entry.dist else entry.value
                raise ValueError(f"task kind {kind!r} of package {package} cannot be loaded: {error}") from error
    if kind not in _TASKS:
        raise ValueError(f"task {name!r} has the unknown kind {kind!r}; {nearest(kind, list_tasks())}")
    check_options(_TASKS[kind], options, f"task {name!r} ({kind})", given=_GIVEN)
