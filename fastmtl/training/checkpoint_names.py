"""The checkpoints in a run's folder: `step-00001234`, and `step-00001234-2` if that step was saved again.

A checkpoint is complete once it has this name, and no checkpoint is ever replaced. The newest one is "last", and its
manifest names the "best" one: both change at the same moment, when a new name appears. Earlier versions wrote the
folders `last` and `best` instead (`last.old` after a crash).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from ..utils.json_toml import read_json
from .errors import DamagedCheckpoint

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})(?:-(\d+))?")


class Saved(NamedTuple):
    """A checkpoint: its step (-1 for `last` of an earlier version), how often that step had been saved, its path."""

    step: int
    number: int
    path: Path


def history(folder: Path) -> list[Saved]:
    """The checkpoints that `folder` contains, valid or damaged, oldest first.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as name:
    ...     for one in ("step-00000010", "step-00000002-2", "step-00000002", "step-00000011.tmp"):
    ...         Path(name, one).mkdir()
    ...     [one.path.name for one in history(Path(name))]
    ['step-00000002', 'step-00000002-2', 'step-00000010']
    """
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if (match := _NAME.fullmatch(path.name)) and path.is_dir():
            found.append(Saved(int(match[1]), int(match[2] or 1), path))
    if (earlier := _earlier(folder / "last")).is_dir():
        found.append(Saved(-1, 1, earlier))
    return sorted(found)


def next_path(folder: Path, step: int) -> Path:
    """Where the next checkpoint of `step` belongs."""
    number = max((one.number for one in history(folder) if one.step == step), default=0) + 1
    return folder / (f"step-{step:08d}" if number == 1 else f"step-{step:08d}-{number}")


def located(directory: Path) -> Path:
    """The directory of the checkpoint that `directory` names: FOLDER/last and FOLDER/best may be anywhere in FOLDER."""
    if directory.name == "last" and (saved := history(directory.parent)):
        return saved[-1].path
    if directory.name == "best" and (saved := history(directory.parent)) and (name := best_of(saved[-1].path)):
        return directory.parent / name
    return _earlier(directory)


def best_of(path: Path) -> str:
    """The name of the best checkpoint at the time of the checkpoint at `path`; "" if there was none.

    Raises:
        DamagedCheckpoint: `path` has no readable manifest, or it names no checkpoint.
    """
    try:
        name = read_json(path / MANIFEST).get("best", None if _NAME.fullmatch(path.name) else "")
    except (OSError, ValueError, AttributeError) as error:
        raise DamagedCheckpoint(f"checkpoint {path} has an unreadable manifest ({error}).") from error
    if name != "" and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise DamagedCheckpoint(f"checkpoint {path} has a manifest that names {name!r} as the best checkpoint.")
    return name


def _earlier(directory: Path) -> Path:
    """`directory`, or DIRECTORY.old if a crash of an earlier version, between two renames, left only that."""
    old = directory.with_name(directory.name + ".old")
    return old if not directory.exists() and old.exists() else directory
