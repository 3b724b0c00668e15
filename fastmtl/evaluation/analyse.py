"""analyses.json and analyses/ of a run folder: saliency maps, feature maps and filters for a few held-out images.

{"images": [{"id", "picture"}], "saliency": [{"image", "task", "picture", "on_true", "true_area"}],
"features": {"image", "maps": [{"stride", "channels", "height", "width", "picture"}]}, "filters": {"count", "shown",
"size", "picture"}, "failed": {analysis: one line}}; "image" is an index into "images", a picture a path in the run
folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import data
from ..builders import components
from ..builders.pretrained import normalization_of
from ..config import Recipe
from ..protocols import Batch
from ..training.disk_policy import disk_reason
from ..training.run_dir import read_lines
from ..utils.atomic_io import empty_folder, write_whole
from ..utils.json_toml import JsonMapping, JsonObject
from ..utils.normalization import Normalization
from . import panels
from .feature_maps import feature_maps, first_filters, has_encoder
from .saliency import has_saliency, saliency

FILE = "analyses.json"
_IMAGES = 4  # analysed: bounds the time and the size of the page
_CHANNELS = 7  # of a feature map, beside its mean
_FILTERS = 32
_QUALITY, _COLUMNS = 80, 4


def analyse(
    folder: Path,
    recipe: Recipe,
    model: nn.Module,
    tasks: Sequence[Any],
    dataset: data.Dataset,
    *,
    device: torch.device,
    stain: data.StainNormalizer | None = None,
) -> list[str]:
    """Write `folder`/analyses.json and `folder`/analyses/; returns a line for each analysis that failed.

    Args:
        folder: a run folder; its evaluation.jsonl determines the images (typical, worst and best of each task).
        model: trained, on `device`, in float32, without test-time augmentation.
        tasks: the recipe's tasks.
        dataset: contains the images of evaluation.jsonl.
    """
    out = folder / "analyses"
    empty_folder(out)
    failed: dict[str, str] = {}
    normalization = normalization_of(recipe)

    def attempt(name: str, what: Callable[[], Any]) -> Any:
        try:
            return what()
        except Exception as error:  # a custom model may fail in any analysis; the report works without it
            if disk_reason(error):
                raise
            failed[name] = " ".join(f"{type(error).__name__}: {error}".split())

    chosen = _chosen(read_lines(folder / "evaluation.jsonl")[0], dataset)
    images = attempt("images", lambda: _read(chosen, recipe, tasks, dataset, device, stain)) if chosen else None
    analyses: dict[str, Callable[[], Any]] = {}
    if images:
        analyses["images"] = lambda: _inputs(images, out, normalization)
        analyses["saliency"] = lambda: _saliency(model, tasks, images, out, normalization)
    if has_encoder(model):
        if images:
            analyses["features"] = lambda: _features(model, images[0], out)
        analyses["filters"] = lambda: _filters(model, out)
    found = {name: shown for name, what in analyses.items() if (shown := attempt(name, what)) is not None}
    write_whole(folder / FILE, json.dumps(found | {"failed": failed}, indent=1))
    return [f"{name}: {why}" for name, why in failed.items()]


def _chosen(lines: Sequence[JsonMapping], dataset: data.Dataset) -> list[str]:
    """Ids of the images: a typical one, the worst and the best of every task, then the first ones."""
    there = {tile.id for tile in dataset.tiles}
    lines = [line for line in lines if isinstance(line.get("id"), str) and line["id"] in there and _has_tasks(line)]
    names = dict.fromkeys(task for line in lines for task in line["tasks"])
    ranked = [
        line["id"]
        for place in ("typical", "worst", "best")
        for task in names
        for line in [line for line in lines if line["tasks"].get(task, {}).get("shown") == place][:1]
    ]
    return list(dict.fromkeys([*ranked, *(line["id"] for line in lines)]))[:_IMAGES]


def _has_tasks(line: JsonMapping) -> bool:
    tasks = line.get("tasks")
    return isinstance(tasks, dict) and bool(tasks) and all(isinstance(entry, dict) for entry in tasks.values())


def _read(
    order: list[str],
    recipe: Recipe,
    tasks: Sequence[Any],
    dataset: data.Dataset,
    device: torch.device,
    stain: data.StainNormalizer | None,
) -> list[Batch]:
    """The images named in `order`, in float32, one batch per image."""
    batches = []
    with components.build_loader(
        recipe, dataset.subset(order), tasks, train=False, device=device, stain=stain
    ) as loader:
        for batch in loader:
            whole = batch.to(device)
            whole = replace(whole, images=whole.images.float())
            batches += [one_image(whole, row) for row in range(len(whole))]
    return sorted(batches, key=lambda batch: order.index(batch.ids[0]))


def _inputs(batches: Sequence[Batch], out: Path, normalization: Normalization) -> list[JsonObject]:
    said = []
    for number, batch in enumerate(batches):
        name = f"input-{number}.jpg"
        panels.plain(batch.images[0], normalization).save(out / name, quality=_QUALITY)
        said.append({"id": batch.ids[0], "picture": f"{out.name}/{name}"})
    return said


def one_image(batch: Batch, row: int) -> Batch:
    """A batch of one of its images."""

    def of(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value[row : row + 1] for name, value in values.items()}

    return Batch(
        batch.images[row : row + 1],
        of(batch.targets),
        batch.has_label[row : row + 1],
        of(batch.metadata),
        batch.ids[row : row + 1],
        batch.groups[row : row + 1],
    )


def _saliency(
    model: nn.Module, tasks: Sequence[Any], batches: Sequence[Batch], out: Path, normalization: Normalization
) -> list[JsonObject]:
    said = []
    for number, batch in enumerate(batches):
        truth = _true_area(tasks, batch)
        for task in filter(has_saliency, tasks):
            values = saliency(model, task, batch)[0].double()
            name = f"saliency-{number}-{task.column}.jpg"
            panels.lit(batch.images[0], values, normalization).save(out / name, quality=_QUALITY)
            entry: JsonObject = {"image": number, "task": task.name, "picture": f"{out.name}/{name}"}
            if truth is not None and (total := values.sum()) > 0:
                entry["on_true"] = (values[truth].sum() / total).item()
                entry["true_area"] = truth.double().mean().item()
            said.append(entry)
    return said


def _true_area(tasks: Sequence[Any], batch: Batch) -> Tensor | None:
    """bool [H, W]: the foreground of this image in the first task with maps that has a label."""
    for task in tasks:
        if task.output.kind in ("map", "queries") and bool(batch.has_label[0, task.column]):
            target = batch.targets[task.name][0]
            return ((target > 0) & (target != getattr(task, "ignore_index", -1))).any(0)
    return None


def _features(model: nn.Module, batch: Batch, out: Path) -> JsonObject:
    said = []
    for number, (stride, values) in enumerate(feature_maps(model, batch)):
        maps = values[0].float()
        cells = [panels.grey(one) for one in (maps.mean(0), *maps[:_CHANNELS])]
        name = f"features-{number}.png"
        panels.multiples(cells, _COLUMNS).save(out / name, optimize=True)
        channels, height, width = maps.shape
        sizes = {"stride": stride, "channels": channels, "height": height, "width": width}
        said.append(sizes | {"picture": f"{out.name}/{name}"})
    return {"image": 0, "maps": said}


def _filters(model: nn.Module, out: Path) -> JsonObject:
    weights = first_filters(model)
    cells = [panels.coloured(one) for one in weights[:_FILTERS]]
    panels.multiples(cells, 2 * _COLUMNS).save(out / "filters.png", optimize=True)
    shown = {"count": len(weights), "shown": len(cells), "size": list(weights.shape[-2:])}
    return shown | {"picture": f"{out.name}/filters.png"}
