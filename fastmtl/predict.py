"""Predictions for images without labels: a mask file per map task, one JSON line per image.

Masks have the size of the image they belong to: logits are resized, then thresholded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import data
from .protocols import Batch
from .run_folder import RunError


def find_images(source: Path) -> list[data.Tile]:
    """The image `source`, or every image in and below the folder `source`; masks of a data set are passed over.

    Raises:
        RunError: nothing there, or no image in it.
    """
    if not source.exists():
        raise RunError(f"{source} does not exist; give an image or a folder of images.")
    root = source if source.is_dir() else source.parent
    paths = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    images = [path for path in paths if path.suffix.lower() in data.IMAGE_SUFFIXES and not _is_label(path)]
    if not images:
        raise RunError(f"no images in {source}; known endings: {', '.join(sorted(data.IMAGE_SUFFIXES))}.")
    if len({path.with_suffix("") for path in images}) < len(images):
        raise RunError(f"{source} has images that differ only in their ending: their masks would have one name.")
    return [
        data.Tile(path.relative_to(root).as_posix(), path, mask=None, label=None, group=data.group_of(path.name))
        for path in images
    ]


def _is_label(path: Path) -> bool:
    """Whether `path` is a mask of a data set laid out as CLASS/image and CLASS/label."""
    return path.parent.name == "label" and (path.parent.parent / "image").is_dir()


@torch.inference_mode()
def write_predictions(
    model: nn.Module, tasks: Sequence[Any], batches: Iterator[Batch], tiles: Sequence[data.Tile], out: Path
) -> int:
    """Write `out`/TASK/IMAGE.png and `out`/predictions.jsonl; returns how many images were predicted."""
    by_id = {tile.id: tile.image for tile in tiles}
    if (out / "predictions.jsonl").exists():
        raise RunError(f"{out} already holds predictions; choose another --out, or remove it.")
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; --out must be a folder to create.")
    out.mkdir(parents=True, exist_ok=True)
    model.eval()
    count = 0
    with (out / "predictions.jsonl").open("w", encoding="utf-8") as lines:
        for batch in batches:
            outputs = {name: logits.float() for name, logits in model(batch).items()}
            for row, name in enumerate(batch.ids):
                width, height = data.picture_size(by_id[name])
                record: dict[str, Any] = {"image": name}
                for task in tasks:
                    logits = outputs[task.name][row : row + 1]
                    if task.output.kind == "map":
                        logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
                        record[task.name] = _write_mask(task.predict(logits), out, f"{task.name}/{name}")
                    else:
                        record[task.name] = _describe(task, logits)
                lines.write(json.dumps(record) + "\n")
                count += 1
    return count


def _write_mask(mask: Tensor, out: Path, name: str) -> dict[str, Any]:
    from PIL import Image

    path = (out / name).with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (mask[0, 0].cpu() * 255).to(torch.uint8).numpy()  # 0 or 255, as the data sets' own masks
    Image.fromarray(pixels).save(path)
    return {"mask": path.relative_to(out).as_posix(), "foreground": mask.float().mean().item()}


def _describe(task: Any, logits: Tensor) -> dict[str, Any]:
    probabilities = logits[0].softmax(0).tolist()
    named = dict(zip(task.class_names, probabilities, strict=True))
    return {"class": task.class_names[int(task.predict(logits))], "probabilities": named}
