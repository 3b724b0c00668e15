"""Run folders as training leaves them, of a network that learned nothing, and damage to their files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmtl import config
from fastmtl.builders import components, stains
from fastmtl.config.parsing import merge
from fastmtl.training.run_dir import RunFolder
from helpers.checkpoints import save_checkpoint

SMALL = {
    "data": {"size": 32, "batch_size": 4},
    "model": {"base_channels": 2},
    "training": {"precision": "float32", "device": "cpu", "epochs": 1},
}


SLIDES = {
    "data": {"size": 32, "tile_size": 64, "mpp": 2.0, "overlap": 16, "min_tissue": 0.4, "batch_size": 8},
    "model": {"base_channels": 2},
    "training": {"precision": "float32", "device": "cpu"},
}


class Killed(BaseException):
    """Where SIGKILL would end the process; nothing may clean up after it, so nothing here does."""


def killed_at(
    run: Callable[[], object], patcher: pytest.MonkeyPatch, owner: type, name: str, at: int, *, after: bool = False
) -> None:
    """Run until the `at`-th call of a method, which is not reached or `after` it."""
    function, calls = getattr(owner, name), []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        done = function(*arguments, **options) if len(calls) < at or after else None
        if len(calls) == at:
            raise Killed
        return done

    with patcher.context() as patched:
        patched.setattr(owner, name, counted)
        with pytest.raises(Killed):
            run()
    for thread in threading.enumerate():
        if thread.name == "fastmtl-checkpoint":
            thread.join()


def untrained(folder: Path, root: Path | str = "", **changes: Any) -> Path:
    """A run folder with the checkpoint "best"; `changes` go over a small demo."""
    return _untrained(folder, config.load_recipe("demo", merge(SMALL, changes)), ["a", "b"], root)


def untrained_on_slides(folder: Path, **changes: Any) -> Path:
    """The same of the demo of slides, with its stain normalizer where `changes` ask for one."""
    recipe = config.load_recipe("demo_slides", merge(SLIDES, changes))
    return _untrained(folder, recipe, ["Adenocarcinoma", "Normal", "Polyp"])


def _untrained(folder: Path, recipe: config.Recipe, names: list[str], root: Path | str = "") -> Path:
    patients = {"training_patients": [], "validation_patients": []}
    run = RunFolder(folder)
    run.create(recipe, {"data": str(root), "split_file": None, "split": "", "class_names": names, **patients})
    model = components.build_model(recipe, components.build_tasks(recipe, names), torch.device("cpu"), trained=True)
    save_checkpoint(run.checkpoints / "best", {"model": model.state_dict()})
    if (normalizer := stains.build_normalizer(recipe)) is not None:
        normalizer.save(folder / stains.FILE)
    return folder


def sealed(directory: Path, files: Mapping[str, bytes]) -> None:
    """Put these files into a checkpoint, and sums that fit: nothing but their content tells that they are damaged."""
    for name, content in files.items():
        (directory / name).write_bytes(content)
    manifest = json.loads((directory / "manifest.json").read_text())
    sums = {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in manifest["sha256"]}
    text = json.dumps(manifest | {"sha256": sums})
    (directory / "manifest.json").write_text(text)
