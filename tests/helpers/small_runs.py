"""The command of a small run, which the tests of whole commands give."""

from __future__ import annotations

from pathlib import Path

OPTIONS = ["--epochs", "2", "--size", "32", "--batch-size", "2", "--log-every", "1", "--precision", "float32"]
OPTIONS += ["--set", "model.base_channels=2", "training.checkpoint_steps=2", "training.average=ema"]
OPTIONS += ["--set", "training.average_decay=0.5"]


def command_of(tiles: Path, out: Path, *more: str) -> list[str]:
    return ["train", "demo", "--data", str(tiles), "--out", str(out), *OPTIONS, *more]
