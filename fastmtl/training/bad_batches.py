"""Writes the batches of the first steps that were skipped, for a look."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from ..protocols import Batch
from ..utils.atomic_io import replacing, write_whole
from .disk_policy import disk_reason

_FILES = 3  # batches written per run and rank


@dataclass
class RecordedStep:
    """A step that has not been judged."""

    step: int
    row: int
    tiles: list[str]
    size: int  # bytes of the batch
    batch: Batch | None  # None if it was too large to keep


@dataclass(frozen=True)
class SkippedStep:
    """A step that was skipped, its losses by task, and the tasks whose loss was a spike."""

    recorded: RecordedStep
    losses: dict[str, float]
    spikes: Sequence[str] = ()

    @property
    def not_finite(self) -> list[str]:
        return [name for name, loss in self.losses.items() if not isfinite(loss)]


def write_batches(folder: Path | None, bad: Sequence[SkippedStep], epoch: int, rank: int) -> str:
    """Write the batches of the first skipped steps; returns their folder, "" if there is none. If the disk cannot be
    written, the folder is followed by the reason: the loss is the error to report."""
    if folder is None:
        return ""
    suffix = f"-rank{rank}" if rank else ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [path for path in folder.glob("step-*.json") if ("-rank" in path.name) == bool(suffix)]
        for one in bad[: max(_FILES - len(written), 0)]:
            _write_step(folder / f"step-{one.recorded.step:06d}{suffix}", one, epoch)
    except Exception as error:
        if not (reason := disk_reason(error) or (str(error) if isinstance(error, OSError) else "")):
            raise
        return f"{folder} (incomplete: {reason})"
    return str(folder)


def _write_step(path: Path, one: SkippedStep, epoch: int) -> None:
    """Write PATH.json (epoch, step, losses, tasks with a spike, names of the tiles) and PATH.safetensors (images as the
    network gets them, targets, has_label, metadata), if the batch was kept."""
    losses = {name: loss if isfinite(loss) else str(loss) for name, loss in one.losses.items()}
    facts = {"epoch": epoch + 1, "step": one.recorded.step, "losses": losses}
    facts |= {"spikes": list(one.spikes), "tiles": one.recorded.tiles}
    if (batch := one.recorded.batch) is not None:
        from safetensors.torch import save_file

        tensors = {"images": batch.images, "has_label": batch.has_label}
        tensors |= {f"targets.{name}": value for name, value in batch.targets.items()}
        tensors |= {f"metadata.{name}": value for name, value in batch.metadata.items()}
        with replacing(path.with_suffix(".safetensors")) as partial:
            save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, partial)
    write_whole(path.with_suffix(".json"), json.dumps(facts, indent=1))
