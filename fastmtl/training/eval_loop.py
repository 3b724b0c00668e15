"""Evaluation of a model over a loader: metrics and losses; and the fastest precision of a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..distributed import World
from ..protocols import Batch, Task
from ..utils.json_toml import JsonObject
from ..utils.score_names import score_names
from .sharding import is_sharded

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


def evaluate(
    model: nn.Module,
    tasks: Sequence[Task],
    loader: Iterable[Batch],
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    visit: Callable[[Batch, dict[str, Any]], None] | None = None,
    world: World | None = None,
) -> JsonObject:
    """{"tasks": task -> metrics, "loss": task -> mean, "score": mean of the primary metrics, "num_images"}.

    A task with labels in several data sets has metrics for each, "SET/TASK" (see `utils.score_names`).

    A primary metric below 0 (R^2 has no lower bound) counts as value / (1 - value), at least -1, so that a single
    untrained task does not determine the checkpoint.

    Args:
        model: its mode (training or evaluation) is restored.
        tasks: some or all of the tasks that the batches have labels for.
        loader: iterated for one epoch.
        device: of the model.
        dtype: of autocast; None computes in float32.
        visit: called with every batch and the model's outputs, so that per-image results need no second pass.
        world: the ranks that share the images; all ranks call it and get the same result as a single process.
    """
    # FSDP2 keeps its buffers for the training, which cannot use those of the inference mode.
    with torch.no_grad() if is_sharded(model) else torch.inference_mode():
        return _evaluate(model, tasks, loader, device, dtype, visit, world)


def _evaluate(
    model: nn.Module,
    tasks: Sequence[Task],
    loader: Iterable[Batch],
    device: torch.device,
    dtype: torch.dtype | None,
    visit: Callable[[Batch, dict[str, Any]], None] | None,
    world: World | None,
) -> JsonObject:
    training = model.training
    model.eval()
    scored = {name: (task, of_set) for task in tasks for name, of_set in score_names(task).items()}
    metrics = {name: task.metrics().to(device) for name, (task, _) in scored.items()}
    sums = torch.zeros(len(tasks), dtype=torch.float64, device=device)
    counts = torch.zeros_like(sums)  # images in whose batches the task is computed
    images = 0
    for batch in loader:
        images += len(batch)
        batch = batch.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            outputs = model(batch)
        for name, (task, of_set) in scored.items():
            if batch.concerns(task.name) and of_set in ("", batch.set):
                task.update(metrics[name], outputs[task.name], batch)
        for place, task in enumerate(tasks):
            if batch.concerns(task.name):
                sums[place] += task.loss(outputs[task.name], batch).double() * len(batch)
                counts[place] += len(batch)
        if visit is not None:
            visit(batch, outputs)
    model.train(training)
    if world is not None:
        found = world.sum(torch.cat([sums, counts, sums.new_tensor([images])]))
        sums, counts, images = found[: len(tasks)], found[len(tasks) : -1], int(found[-1])
        if world.size > 1:
            _fill_empty_lists(metrics, world)
    # torchmetrics sums over the ranks.
    summaries = {name: task.summary(metrics[name]) for name, (task, _) in scored.items()}
    primary = [summaries[name][task.primary_metric] for name, (task, _) in scored.items() if task.primary_metric]
    known = [value if value >= 0 else value / (1 - value) for value in primary if value is not None]
    means = (sums / counts.clamp(min=1)).tolist()
    return {
        "tasks": summaries,
        "loss": {task.name: loss for task, loss in zip(tasks, means, strict=True)},
        "score": sum(known) / len(known) if known else float("nan"),
        "num_images": images,
    }


def _fill_empty_lists(metrics: Mapping[str, MetricCollection], world: World) -> None:
    """Give a rank that has added nothing to a metric, because it had no labelled image, the empty tensors that the
    others need to gather: torchmetrics would send some of another shape and type, and gloo would abort."""
    lists = {
        (task, name, state): getattr(metric, state)
        for task, collection in metrics.items()
        for name, metric in collection.items(keep_base=True, copy_state=False)
        for state, default in metric._defaults.items()
        if isinstance(default, list)
    }
    kinds = {key: (tuple(found[0].shape[1:]), found[0].dtype) for key, found in lists.items() if found}
    for key, (shape, dtype) in world.gather_entries(kinds).items():
        if not lists[key]:
            lists[key].append(torch.empty((0, *shape), dtype=dtype, device=metrics[key[0]][key[1]].device))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast dtype; None computes in float32. `auto` is bfloat16 if the hardware supports it, else float32."""
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_multiplies_bfloat16()
        return torch.bfloat16 if fast else None
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def _cpu_multiplies_bfloat16() -> bool:
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.13
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
