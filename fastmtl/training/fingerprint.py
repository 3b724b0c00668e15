"""Checksums of the parts of a finished run: two runs with the same ones ended in the same state."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..utils.json_toml import read_json
from . import checkpoint
from .run_dir import RunFolder, read_lines

TIMED = frozenset(
    ("seconds", "validation_seconds", "images_per_second", "waiting", "time", "memory_bytes", "update_gb_per_second")
)
"""Keys of metrics.jsonl that measure the machine, so that they differ between runs."""
_PARTS = {
    "weights": ("model",),
    "averaged weights": ("average",),
    "optimizer": ("optimizer", "scaler"),
    "learning-rate schedule": ("scheduler",),
    "balancer": ("balancer",),
    "random numbers": ("rng", "rng_device"),
    "loader position": ("loader",),
    "progress": ("progress",),
}
"""Part -> its keys in a checkpoint."""


def fingerprint(run: Path) -> dict[str, str]:
    """Part of the run in `run` -> its sha256; parts that the training does not have are left out.

    The state is that of the newest checkpoint. Lines of metrics.jsonl and balance.jsonl count without their times.

    Raises:
        CheckpointError: the run has no checkpoint, or a damaged one.
    """
    folder = RunFolder(run)
    state = checkpoint.load(folder.checkpoints / "last")
    parts: dict[str, Any] = {
        part: [state[key] for key in keys]
        for part, keys in _PARTS.items()
        if any(state[key] is not None for key in keys)
    }
    best = checkpoint.load(folder.checkpoints / "best")
    parts["best weights"] = [best["model"], best["average"]]
    for file in ("metrics.jsonl", "balance.jsonl"):
        parts[file] = untimed(run / file)
    if (summary := run / "summary.json").is_file():
        parts["final scores"] = read_json(summary)
    return {part: digest(value) for part, value in parts.items()}


def untimed(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file of a run, without the keys in `TIMED`."""
    return [{key: value for key, value in record.items() if key not in TIMED} for record in read_lines(path)[0]]


def digest(value: Any) -> str:
    """sha256 of nested dicts, lists and tuples of tensors, numbers and text; the order in a dict does not count.

    >>> digest({"a": 1, "b": torch.ones(2)}) == digest({"b": torch.ones(2), "a": 1})
    True
    >>> digest(torch.ones(2)) == digest(torch.ones(2, 1))
    False
    """
    found = hashlib.sha256()
    _add(value, found)
    return found.hexdigest()


def _add(value: Any, found: Any) -> None:
    if isinstance(value, Tensor):
        found.update(f"{value.dtype} {list(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        found.update(f"dict {len(value)}".encode())
        for key in sorted(value, key=repr):
            _add(key, found)
            _add(value[key], found)
    elif isinstance(value, list | tuple):
        found.update(f"list {len(value)}".encode())
        for item in value:
            _add(item, found)
    else:
        found.update(f"{type(value).__name__} {json.dumps(value)}".encode())
