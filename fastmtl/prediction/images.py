"""Predictions for images without labels: mask files for maps, one JSON line per image.

Masks have the size of their image: logits are resized, then thresholded by the task's own threshold (the groups of the
images are unknown). Auxiliary tasks (images, embeddings, auxiliary maps) are omitted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import data
from ..data.images.pictures import file_of
from ..protocols import Batch
from ..training.run_dir import RunError
from ..utils.atomic_io import replacing
from ..utils.json_toml import JsonObject
from ..utils.suggestions import file_name
from .output_dir import answer, entry_name, inside, row_of
from .records import LINES, QUARANTINE, append_lines, rewrite


def find_images(source: Path) -> list[data.Tile]:
    """The image `source`, or every image in and below the folder `source`, without masks and folders of predictions.

    Raises:
        RunError: it does not exist, or contains no image.
    """
    if not source.exists():
        raise RunError(f"{source} does not exist; give an image or a slide, or a folder of them.")
    root = source if source.is_dir() else source.parent
    paths = [source] if source.is_file() else data.without_predictions(source, sorted(source.rglob("*")))
    paths = [path for path in paths if path.is_file()]
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
    """Whether `path` is a mask in the layout CLASS/image and CLASS/label."""
    return path.parent.name == "label" and (path.parent.parent / "image").is_dir()


def images_there(out: Path) -> set[str]:
    """The images that have predictions in `out`; the lines of all ranks are joined, and a truncated one is removed."""
    return {record["image"] for record in rewrite(out / LINES, "image")}


def damage_of_images(tiles: Sequence[data.Tile]) -> dict[str, str]:
    """Image -> why it cannot be read; every image is decoded."""
    reasons = {problem.path: problem.reason for problem in data.check_tiles(tiles)}
    files = {tile.id: file_of(tile.image) for tile in tiles}
    return {name: reasons[file] for name, file in files.items() if file in reasons}


def finish_images(out: Path, files: Mapping[str, Path], damaged: Mapping[str, str]) -> None:
    """Join and sort the lines of all ranks; list the damaged images, and no others, in `out`/quarantine.jsonl.

    Args:
        out: the output folder.
        files: image -> its file.
        damaged: image -> reason.
    """
    rewrite(out / LINES, "image")
    (out / QUARANTINE).unlink(missing_ok=True)
    entries = [{"image": name, "file": str(files[name]), "reason": damaged[name]} for name in damaged]
    append_lines(out / QUARANTINE, entries)
    rewrite(out / QUARANTINE, "image")


@torch.inference_mode()
def write_predictions(
    model: nn.Module,
    tasks: Sequence[Any],
    batches: Iterator[Batch],
    tiles: Sequence[data.Tile],
    out: Path,
    rank: int = 0,
) -> int:
    """Write `out`/TASK/IMAGE.png and add to this rank's lines of `out`; returns how many images were predicted."""
    by_id = {tile.id: tile.image for tile in tiles}
    out.mkdir(parents=True, exist_ok=True)
    model.eval()
    count = 0
    for batch in batches:
        outputs, lines = model(batch), []
        for row, name in enumerate(batch.ids):
            width, height = data.picture_size(by_id[name])
            record: JsonObject = {"image": name}
            for task in tasks:
                found = _answer(task, row_of(outputs[task.name], row), (height, width), out, name)
                if found is not None:
                    record[entry_name(task.name, ["image"])] = found
            lines.append(record)
        append_lines(out / LINES, lines, rank)
        count += len(lines)
    return count


def _answer(task: Any, output: Any, size: tuple[int, int], out: Path, name: str) -> JsonObject | None:
    kind = task.output.kind
    if kind == "map":
        logits = F.interpolate(output, size, mode="bilinear", align_corners=False)
        return _write_maps(task, task.predict(logits), out, name)
    if kind == "queries":
        return _write_maps(task, task.scores(output, size).argmax(1, keepdim=True).to(torch.uint8), out, name)
    return answer(task, output, (0, 0, size[1], size[0]))


def _write_maps(task: Any, found: Tensor, out: Path, name: str) -> JsonObject:
    """One structure: a mask of 0 and 255. Several overlapping structures: a mask each. Classes: one map of indices."""
    structures = getattr(task, "structures", (task.name,))
    if found.dtype != torch.bool and len(structures) > 2:
        shares = {one: (found == index).float().mean().item() for index, one in enumerate(structures)}
        return {"classes": _write(found[0, 0], out, f"{task.name}/{name}"), "shares": shares}
    if found.shape[1] > 1:
        return {
            one: _write_mask(found[0, channel], out, f"{task.name}/{file_name(one)}/{name}")
            for channel, one in enumerate(structures)
        }
    return _write_mask(found[0, 0].bool(), out, f"{task.name}/{name}")


def _write_mask(mask: Tensor, out: Path, name: str) -> JsonObject:
    return {"mask": _write(mask * 255, out, name), "foreground": mask.float().mean().item()}


def _write(pixels: Tensor, out: Path, name: str) -> str:
    """Write the PNG `out`/`name`; returns its path in `out`."""
    from PIL import Image

    path = inside(out, name).with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        Image.fromarray(pixels.cpu().to(torch.uint8).numpy()).save(partial, "PNG")
    return path.relative_to(out).as_posix()
