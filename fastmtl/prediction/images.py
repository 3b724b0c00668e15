"""Predictions for images without labels: mask files for maps, one JSON line per image.

Masks have the size of their image: logits are resized, then thresholded by the task's own threshold (the groups of the
images are unknown). Auxiliary tasks (images, embeddings, auxiliary maps) are omitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def write_predictions(
    model: nn.Module,
    tasks: Sequence[Any],
    batches: Iterable[Batch],
    tiles: Sequence[data.Tile],
    out: Path,
    rank: int = 0,
) -> int:
    """Write `out`/TASK/IMAGE.png and add to this rank's lines of `out`; returns how many images were predicted."""
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    for found in predictions(model, tasks, batches, tiles):
        lines = []
        for name, answers in found.items():
            written = {entry_name(task, ["image"]): _written(value, out, task, name) for task, value in answers.items()}
            lines.append({"image": name} | written)
        append_lines(out / LINES, lines, rank)
        count += len(lines)
    return count


@torch.inference_mode()
def predictions(
    model: nn.Module, tasks: Sequence[Any], batches: Iterable[Batch], tiles: Sequence[data.Tile]
) -> Iterator[dict[str, dict[str, JsonObject]]]:
    """Of each batch: the image's id -> task -> its answer in JSON types, with maps as uint8 tensors [H, W] of the
    image's size; without auxiliary tasks."""
    by_id = {tile.id: tile.image for tile in tiles}
    model.eval()
    for batch in batches:
        outputs, found = model(batch), {}
        for row, name in enumerate(batch.ids):
            width, height = data.picture_size(by_id[name])
            answers = {task.name: _answer(task, row_of(outputs[task.name], row), (height, width)) for task in tasks}
            found[name] = {task: value for task, value in answers.items() if value is not None}
        yield found


def _answer(task: Any, output: Any, size: tuple[int, int]) -> JsonObject | None:
    kind = task.output.kind
    if kind == "map":
        logits = F.interpolate(output, size, mode="bilinear", align_corners=False)
        return _maps(task, task.predict(logits))
    if kind == "queries":
        return _maps(task, task.scores(output, size).argmax(1, keepdim=True).to(torch.uint8))
    return answer(task, output, (0, 0, size[1], size[0]))


def _maps(task: Any, found: Tensor) -> JsonObject:
    """One structure: a mask of 0 and 255. Several overlapping structures: a mask each. Classes: one map of indices."""
    structures = getattr(task, "structures", (task.name,))
    if found.dtype != torch.bool and len(structures) > 2:
        shares = {one: (found == index).float().mean().item() for index, one in enumerate(structures)}
        return {"classes": found[0, 0].cpu().to(torch.uint8), "shares": shares}
    masks = [_mask(found[0, channel].bool()) for channel in range(found.shape[1])]
    return dict(zip(structures, masks, strict=True)) if len(masks) > 1 else masks[0]


def _mask(mask: Tensor) -> JsonObject:
    return {"mask": mask.cpu().to(torch.uint8) * 255, "foreground": mask.float().mean().item()}


def _written(answer: Any, out: Path, folder: str, name: str) -> Any:
    """The answer with its maps written, as their files; those of a structure are in a folder of its name."""
    if isinstance(answer, Tensor):
        return _write(answer, out, f"{folder}/{name}")
    if not isinstance(answer, dict):
        return answer
    within = {key: f"{folder}/{file_name(key)}" if isinstance(value, dict) else folder for key, value in answer.items()}
    return {key: _written(value, out, within[key], name) for key, value in answer.items()}


def _write(pixels: Tensor, out: Path, name: str) -> str:
    """Write the PNG `out`/`name`; returns its path in `out`."""
    from PIL import Image

    path = inside(out, name).with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        Image.fromarray(pixels.numpy()).save(partial, "PNG")
    return path.relative_to(out).as_posix()
