"""Folders of generated data: written atomically and only once, never over a user's own folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...utils.json_toml import read_json

_STAMP = "generator.json"


def make_folder(root: Path, stamp: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
    """Let `write` fill a folder and move it to `root`; does nothing if `root` already has the same stamp.

    Args:
        root: the folder to make; one of the same generator with another stamp is replaced.
        stamp: the parameters, JSON types, with "generator".
        write: fills an empty folder.

    Raises:
        FileExistsError: `root` is a folder that this generator did not make; it is left alone.
    """
    if root.exists() and _check_ours(root, stamp) == stamp:
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        partial.chmod(0o777 & ~_umask())  # mkdtemp's folders are private
        write(partial)
        (partial / _STAMP).write_text(json.dumps(stamp, indent=1) + "\n")
        if root.exists():
            _check_ours(root, stamp)
            shutil.rmtree(root)
        os.replace(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def check_limits(recipe: object, limits: Mapping[str, tuple[int, int]]) -> None:
    """Raise ValueError for a parameter outside its limits, or a `slide_size` that cannot be halved twice."""
    for name, (low, high) in limits.items():
        value = getattr(recipe, name)
        if not low <= value <= high:
            raise ValueError(f"`{name}` must be between {low} and {high}; got {value}")
        if name == "slide_size" and value % 4:
            raise ValueError(f"`slide_size` must be a multiple of 4; got {value}")


def _check_ours(root: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The folder's stamp; empty for an empty folder."""
    if root.is_dir() and not any(root.iterdir()):
        return {}
    try:
        stamp = read_json(root / _STAMP)
    except (OSError, ValueError):
        stamp = None
    if not isinstance(stamp, dict) or stamp.get("generator") != wanted["generator"]:
        raise FileExistsError(f"{root} exists and is not a generated data set; give another folder or remove it")
    return stamp


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
