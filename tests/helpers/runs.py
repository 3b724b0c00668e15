"""Run folders as training leaves them, of a network that learned nothing, and damage to their files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastmtl import config
from fastmtl.builders import components
from fastmtl.training import checkpoint
from fastmtl.training.run_dir import RunFolder

SMALL = {
    "data": {"size": 32, "batch_size": 4},
    "model": {"base_channels": 2},
    "training": {"precision": "float32", "device": "cpu", "epochs": 1},
}


def untrained(folder: Path, root: Path | str = "", **changes: Any) -> Path:
    """A run folder with the checkpoint "best"; `changes` go over a small demo."""
    recipe = config.load_recipe("demo", config.merge(SMALL, changes))
    names = ["a", "b"]
    patients = {"training_patients": [], "validation_patients": []}
    run = RunFolder(folder)
    run.create(recipe, {"data": str(root), "split_file": None, "split": "", "class_names": names, **patients})
    model = components.build_model(recipe, components.build_tasks(recipe, names), torch.device("cpu"), trained=True)
    checkpoint.save(run.checkpoints / "best", {"model": model.state_dict()})
    return folder


def sealed(directory: Path, files: Mapping[str, bytes]) -> None:
    """Put these files into a checkpoint, and sums that fit: nothing but their content tells that they are damaged."""
    for name, content in files.items():
        (directory / name).write_bytes(content)
    manifest = json.loads((directory / "manifest.json").read_text())
    sums = {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in manifest["sha256"]}
    text = json.dumps(manifest | {"sha256": sums})
    (directory / "manifest.json").write_text(text)
