"""Loads a trained run for evaluation and prediction, or several as an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from .. import data
from ..builders import components, pretrained, stains
from ..config import Recipe
from ..evaluation.ensemble import Ensemble
from ..evaluation.tta import Views
from ..protocols import Task
from ..training import checkpoint
from ..training.checkpoint_names import located
from ..training.eval_loop import autocast_dtype
from ..training.run_dir import RunError, RunFolder
from ..training.stages import ready_for_use

_DIFFERENT_INPUT = "networks that read images differently cannot be averaged"
_DIFFERENT_PATIENTS = "the patients that each was trained on have no common names, so that they could not be left out"
_ALIKE = {  # option of [data] -> why all runs need the same
    **dict.fromkeys(("size", "preprocessing", "stain", "mask_sampling"), _DIFFERENT_INPUT),
    **dict.fromkeys(("tile_size", "mpp", "overlap", "min_tissue"), _DIFFERENT_INPUT),
    **dict.fromkeys(("patient", "group_by"), _DIFFERENT_PATIENTS),
}
_ALONE = "Evaluate or predict with each run alone."


class Trained(NamedTuple):
    """A trained run, loaded for evaluation and prediction; of an ensemble the first run, with all networks as `model`
    and all checkpoints in `weights`."""

    recipe: Recipe
    facts: dict[str, Any]
    which: Literal["best", "last"]
    tasks: Sequence[Task]
    model: nn.Module
    device: torch.device
    dtype: torch.dtype | None
    stain: data.StainNormalizer | None
    weights: tuple[Path, ...]

    @property
    def classes(self) -> dict[str, list[str]]:
        """Label column -> the classes of its task; other data must have the same."""
        known = {"": self.facts["class_names"], **self.facts.get("classes", {})}
        columns = {task.target.column for task in self.tasks if task.target.kind == "label"}
        return {column or "label": known[column] for column in columns}

    def check_images_suffice(self) -> None:
        """Raise RunError for a network that reads metadata, which images and slides alone lack: it would see zeros."""
        if self.recipe.data.metadata:
            raise RunError(
                f"the network reads data.metadata ({', '.join(self.recipe.data.metadata)}), which images and slides "
                "alone do not have; `fastmtl eval` reads it from a data set."
            )

    def read(self, folder: data.Dataset) -> data.TileLoader:
        """Batches of `folder` in order; stains of new slides are estimated first."""
        if self.stain is not None:
            stains.fit_slides(self.stain, folder.tiles, self.recipe)
        return components.build_loader(
            self.recipe, folder, self.tasks, train=False, device=self.device, stain=self.stain
        )


def load(
    path: Path,
    which: Literal["best", "last"] | None,
    device_name: str,
    tta: Sequence[str] | None,
    others: Sequence[Path] = (),
    local_rank: int = 0,
) -> Trained:
    """The run in `path`; with `others` the ensemble of it and them, for the tasks that all of them have. `local_rank`
    selects the GPU of this process.

    Raises:
        RunError: a folder is not a run, or a run cannot be averaged with the first one.
    """
    paths = (path, *others)
    if twice := next((one for one in others if [other.resolve() for other in paths].count(one.resolve()) > 1), None):
        raise RunError(f"{twice} is named twice, which would count its network twice in the mean; name each run once.")
    runs = [_load(one, which, device_name, local_rank) for one in paths]
    first = runs[0]
    if others:
        first = _ensemble(runs, paths)
    if views := first.recipe.training.tta if tta is None else tta:
        first = first._replace(model=Views(first.model, first.tasks, views))
    return first


def _load(path: Path, which: Literal["best", "last"] | None, device_name: str, local_rank: int) -> Trained:
    run = RunFolder(path)
    recipe, facts = run.recipe(), run.extra()
    device = components.device_of(device_name, local_rank)
    tasks = components.build_tasks(recipe, facts["class_names"], facts.get("classes", {}))
    model = components.build_model(recipe, tasks, device, trained=True)
    which = which or recipe.training.checkpoint
    weights = located(run.checkpoints / which)
    checkpoint.load_model(weights, model, device)
    ready_for_use(recipe, model)
    dtype = autocast_dtype(recipe.training.precision, device)
    return Trained(recipe, facts, which, tasks, model, device, dtype, stains.load_normalizer(path, recipe), (weights,))


def _ensemble(runs: Sequence[Trained], paths: Sequence[Path]) -> Trained:
    first = runs[0]
    shared = [name for name in first.recipe.tasks if all(name in run.recipe.tasks for run in runs)]
    if not shared:
        raise RunError(f"{', '.join(map(str, paths))} have no task in common, so that there is nothing to average.")
    for run, path in zip(runs[1:], paths[1:], strict=True):
        _check_alike(first, run, paths[0], path)
        _check_tasks(first, run, shared, path)
    metadata = {name: columns for run in runs for name, columns in run.recipe.data.metadata.items()}
    recipe = replace(
        first.recipe,
        data=replace(first.recipe.data, metadata=metadata),
        tasks={name: first.recipe.tasks[name] for name in shared},
    )
    tasks = components.build_tasks(recipe, first.facts["class_names"], first.facts.get("classes", {}))
    normalizations = [pretrained.normalization_of(run.recipe) for run in runs]
    seen = ("training_patients", "inner_patients")
    facts = first.facts | {key: sorted({name for run in runs for name in run.facts.get(key, ())}) for key in seen}
    model = Ensemble([run.model for run in runs], normalizations, shared)
    weights = tuple(one for run in runs for one in run.weights)
    return first._replace(recipe=recipe, facts=facts, tasks=tasks, model=model, weights=weights)


def _same_target(one: data.StainNormalizer | None, other: data.StainNormalizer | None) -> bool:
    targets = [None if stain is None or stain.target is None else tuple(stain.target) for stain in (one, other)]
    if None in targets:
        return targets[0] is targets[1]
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(targets[0] or (), targets[1] or (), strict=True))


def _check_alike(first: Trained, other: Trained, path: Path, other_path: Path) -> None:
    """Raise RunError unless both networks can have the same batches."""
    for option, why in _ALIKE.items():
        one, two = getattr(first.recipe.data, option), getattr(other.recipe.data, option)
        if one != two:
            raise RunError(f"{other_path} has data.{option} = {two!r} and {path} {one!r}: {why}. {_ALONE}")
    if not _same_target(first.stain, other.stain):  # a mosaic is of each run's own training images
        raise RunError(f"{other_path} and {path} normalise stains to different targets: {_DIFFERENT_INPUT}. {_ALONE}")
    for name, columns in other.recipe.data.metadata.items():
        if first.recipe.data.metadata.get(name, columns) != columns:
            raise RunError(f"{other_path} and {path} have different columns in data.metadata.{name}. {_ALONE}")


def _check_tasks(first: Trained, other: Trained, shared: Sequence[str], path: Path) -> None:
    """Raise RunError unless the tasks in common have outputs of the same meaning, which have a mean."""
    for name in shared:
        mine, theirs = (next(task for task in run.tasks if task.name == name) for run in (first, other))
        if mine.output.kind == "queries":
            raise RunError(f"task {name!r} cannot be averaged: queries of two networks have no common order. {_ALONE}")
        adjusted = "logit_adjustment", "decision_adjustment"
        for what in ("output", "target", "class_names", "structures", "side", "mean", "std", *adjusted):
            one, two = getattr(mine, what, None), getattr(theirs, what, None)
            if one != two:
                raise RunError(f"task {name!r} of {path} has {what} {two!r}, and the first run {one!r}. {_ALONE}")
