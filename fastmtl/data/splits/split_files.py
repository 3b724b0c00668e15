"""Splits as JSON files."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from pathlib import Path

from ...utils.atomic_io import write_whole
from ...utils.json_toml import parse_json
from ..text import read_text
from .split import Split


def save_split(split: Split, path: str | Path) -> None:
    """Write `split` as JSON, atomically."""
    content = {"validation_patients": split.held_out_groups, "train": split.train, "validation": split.val}
    if split.test:
        content |= {"test_patients": split.test_groups, "test": split.test}
    if split.inner:
        content |= {"inner_patients": split.inner_groups, "inner": split.inner}
    write_whole(Path(path), json.dumps(content, indent=1) + "\n")


def load_split(path: str | Path) -> Split:
    """Read a split written by `save_split`."""
    content = _read_json(path, ("train", "validation", "validation_patients"))
    names = ("train", "validation", "validation_patients", "test", "test_patients", "inner", "inner_patients")
    return Split(*(tuple(content.get(name, ())) for name in names))


def load_groups(path: str | Path) -> tuple[str, ...]:
    """The validation patients named in a split file, for `split_by_groups`."""
    return tuple(_read_json(path, ("validation_patients",))["validation_patients"])


def load_test_groups(path: str | Path) -> tuple[str, ...]:
    """The test patients named in a split file; none in a split of two sides."""
    return tuple(_read_json(path, ("validation_patients",)).get("test_patients", ()))


def load_inner_groups(path: str | Path) -> tuple[str, ...]:
    """The patients of the inner share named in a split file; none in a split without one."""
    return tuple(_read_json(path, ("validation_patients",)).get("inner_patients", ()))


def _read_json(path: str | Path, keys: Sequence[str]) -> dict[str, list[str]]:
    text = read_text(Path(path))
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is not a readable split file: {error}") from None
    missing = [key for key in keys if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise ValueError(f"{path} is not a split file: it has no list named {missing[0]!r}")
    for key in (*keys, "test", "test_patients", "inner", "inner_patients"):
        names = content.get(key, [])
        if not isinstance(names, list):
            raise ValueError(f"{path}: {key} must be a list; got {reprlib.repr(names)[:80]}")
        strange = next((name for name in names if not isinstance(name, str)), None)
        if strange is not None:
            raise ValueError(f"{path}: {key} must hold names in quotes; got {reprlib.repr(strange)[:80]}")
    return content
