"""A run folder made by hand, with everything in it, for the tests of reports."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fastmtl.evaluation.per_image import ImageTable
from fastmtl.models import Output
from fastmtl.protocols import Batch
from fastmtl.tasks import create_task

CLASSES = ["<b>x", "Polyp"]
EVIL = "<b>x"


def record(epoch: int) -> dict[str, Any]:
    dice = math.nan if epoch == 1 else 0.5 + 0.1 * epoch
    scores = {"outline": {"dice": dice}, "kind": {"accuracy": 0.75, "per_class": {EVIL: 0.5, "Polyp": None}}}
    loss = {"outline": 0.9 / epoch, "kind": 1.2 / epoch}
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "loss": loss,
        "images_per_second": 40.0,
        "waiting": 0.25,
        "seconds": 8.0,
        "validation": {"tasks": scores, "loss": loss, "score": dice, "num_images": 4},
        "validation_seconds": 2.0,
    }


def look(step: int) -> dict[str, Any]:
    numbers = {"weights": [1.0, 2.0], "norms": [0.5, math.nan], "cosines": [[1.0, -0.2], [-0.2, 1.0]]}
    return {"step": step, "epoch": 1, "loss": {"outline": 0.5, "kind": 0.7}, "gradient_norm": 2.0} | numbers


def batch() -> Batch:
    """Four images of two patients: one mask right, one wrong, one empty, one without labels."""
    masks = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    masks[:2, :, 2:6, 2:6] = 1
    has_label = torch.tensor([[True, True], [True, True], [True, True], [False, False]])
    targets = {"outline": masks, "kind": torch.tensor([0, 1, 1, 0])}
    ids = [f"{name}/tile-{index}" for index, name in enumerate([EVIL, "Polyp", "Polyp", "Polyp"])]
    return Batch(torch.zeros(4, 3, 8, 8), targets, has_label, ids=ids, groups=["P1", "P1", "P2", "P2"])


def table(keep: int = 6) -> ImageTable:
    tasks = [
        create_task("binary_segmentation", "outline", 0),
        create_task("classification", "kind", 1, class_names=CLASSES),
    ]
    assert tasks[0].output == Output("map", 1)
    seen = batch()
    logits = torch.where(seen.targets["outline"].bool(), 9.0, -9.0)
    logits[1] = -logits[1]
    kinds = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0], [0.0, 3.0]])
    found = ImageTable(tasks, keep=keep)
    found(seen, {"outline": logits, "kind": kinds})
    return found


def write_run(folder: Path) -> Path:
    """The files of a run with one odd class name, and its tiles beside it."""
    (folder / "tiles").mkdir(parents=True)
    (folder / "config.toml").write_text(
        'name = "<i>recipe"\nsummary = "a & b"\n[balancer]\nname = "pcgrad"\n[training]\nepochs = 2\n'
    )
    facts = {"data": "tiles", "split": "drawn", "class_names": CLASSES}
    facts |= {"training_patients": ["P0"], "validation_patients": ["P1", "P2"]}
    facts |= {"precision": "bfloat16", "training_images": 31, "validation_images": 4}
    (folder / "run.json").write_text(json.dumps(facts))
    environment = {"fastmtl": "0", "commit": "abcdef0123456789", "threads": 2, "gpus": [], "command": "fastmtl train"}
    environment |= {"processor": "Fast 9000"}
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record(epoch)) + "\n" for epoch in (1, 2, 3)))
    (folder / "balance.jsonl").write_text("".join(json.dumps(look(step)) + "\n" for step in range(5, 35, 5)))
    scores = record(3)["validation"]["tasks"]
    summary = {"tasks": scores, "num_images": 4, "num_patients": 2, "checkpoint": "best"}
    (folder / "summary.json").write_text(json.dumps(summary))
    Image.new("RGB", (32, 24), (230, 180, 210)).save(folder.parent / "tile.png")
    table().write(folder, dict.fromkeys(batch().ids, folder.parent / "tile.png"))
    return folder
