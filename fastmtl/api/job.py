"""The parts of a training run, checked against each other: data, stains, tasks and network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from .. import data
from ..builders import components, datasets, pretrained, stains
from ..builders.class_shares import with_class_shares
from ..builders.ranks import with_synced_batchnorm
from ..builders.sets import rare_sets, shares
from ..config import ConfigError, Recipe, UsageError
from ..distributed import World
from ..evaluation.tta import check_views
from ..protocols import Task
from ..training.errors import OtherRanks
from ..training.eval_loop import autocast_dtype
from ..training.run_dir import RunError, RunFolder
from ..utils.words import counted
from . import notices, rank_facts
from .continuing import Start

_MOST_NAMED = 4096  # ranks that a message names


@dataclass(frozen=True)
class Job:
    """Everything that training and scoring need on one rank; `batch_size` is this rank's images in a step."""

    recipe: Recipe
    out: Path
    batch_size: int
    facts: dict[str, Any]
    splits: datasets.Splits
    tasks: Sequence[Task]
    model: nn.Module
    stain: data.StainNormalizer | None
    device: torch.device
    dtype: torch.dtype | None
    world: World
    console: Console
    notices: list[str]
    checked: data.CheckedFiles

    def read(
        self, part: data.Dataset, world: World | None = None, *, train: bool = False, drop_single: bool = False
    ) -> data.TileLoader:
        """Batches of `part`; with `world`, this rank's share of them."""
        return components.build_loader(
            self.recipe,
            part,
            self.tasks,
            train=train,
            device=self.device,
            world=world,
            stain=self.stain,
            batch_size=self.batch_size if train else 0,
            drop_single=drop_single,
        )

    def training_batches(self) -> data.TileLoader:
        """This rank's batches, without a last batch of one image if the network cannot be trained on one.

        Raises:
            ConfigError: there are no other batches.
        """
        loader = self.read(self.splits.train, self.world, train=True)
        name, one = self.recipe.model["name"], "a batch of one image gives BatchNorm of {} one value per channel"
        if not loader.ends_with_one or components.takes_one_image(
            self.recipe, self.model, len(self.tasks), self.device
        ):
            return loader
        loader.close()
        if self.batch_size == 1 or len(loader) == 1:
            found = "data.batch_size is 1" if self.batch_size == 1 else "there is one image to train on"
            raise ConfigError(f"recipe {self.recipe.name}: {found}, but {one.format(name)}; it needs two or more.")
        kept = self.read(self.splits.train, self.world, train=True, drop_single=True)
        if len(kept) < len(loader):  # otherwise the ranks share several images, and copies fill each up to two
            notice = (
                f"{one.format(name)}, and each epoch would end with such a batch: one image, another one in each "
                f"epoch, is left out (data.batch_size = {self.batch_size})"
            )
            say([notice], self.console)
            self.notices.append(notice)
        return kept


def assemble(start: Start, out: Path, device: torch.device, world: World, *, trained: bool, console: Console) -> Job:
    """Read the data, build the tasks and the network, and check them against each other; prints a summary.

    A resumed run uses the split and stains in `out`; the weights of a `trained` one come from a checkpoint.
    """
    recipe, root, split_file, resumed, run = start.recipe, start.root, start.split_file, start.resumed, RunFolder(out)
    # The ranks that began the run; runs of earlier versions do not record them.
    ranks = world.broadcast(run.extra().get("ranks") if resumed and world.rank == 0 else None) or world.size
    batch_size = share_of_batch(recipe, ranks, world.size)
    continued = resumed and (out / stains.FILE).exists()
    stain = stains.load_normalizer(out, recipe) if continued else stains.build_normalizer(recipe)
    if root is None and recipe.data.sets:
        root = Path()
    if root is None:
        root = world.broadcast(_generate(recipe, out.parent, console) if world.rank == 0 else Path())
    has_split = resumed and run.split_file.is_file()
    if has_split:  # new split files or another random draw must not move patients
        split_file = run.split_file
    checked = datasets.checked_files(recipe, root, out)
    same = partial(_check_same_tiles, run, root.resolve()) if has_split else None
    splits = datasets.read_splits(recipe, root, split_file, checked, accept=same)
    if world.size > 1:
        world.require_equal(rank_facts.of_data(splits))
    _describe(splits, root, console, by_tile=recipe.data.group_by == "tile")
    if stain is not None:
        for part in (splits.train, splits.validation, splits.test, splits.inner):  # a mosaic uses only the first
            stains.fit_slides(stain, part.tiles, recipe, world, console)
    if not resumed:
        recipe = with_class_shares(recipe, splits.train)
    tasks = components.build_tasks(recipe, splits.train.class_names, splits.train.classes)
    datasets.check_targets(tasks, splits.train)
    datasets.check_metadata(recipe, splits.train)
    parts = (splits.train, splits.validation, splits.test, splits.inner)
    odd = datasets.check_maps(tasks, parts, train=splits.train, say=console.print)
    say(notices.lines((one.path, one.reason) for one in odd), console)
    splits = replace(splits, problems=[*splits.problems, *odd])
    model = with_synced_batchnorm(recipe, components.build_model(recipe, tasks, device, trained=trained), world)
    components.check_size(recipe, model)
    if not trained:
        recipe = pretrained.with_normalization(recipe, model)
        if (report := getattr(model, "weights_report", None)) is not None:
            console.print(f"weights: {report}", markup=False)
    check_views(tasks, recipe.training.tta)
    dtype = autocast_dtype(recipe.training.precision, device)
    odd = [*_odd_targets(tasks, splits), *rare_sets(recipe, splits.train, batch_size * world.size)]
    say(odd, console)
    odd = [*notices.of_problems(splits.problems, root), *odd]
    facts = _facts(root, split_file, splits) | {
        **({"sets": of_sets(recipe, splits)} if recipe.data.sets else {}),
        "ranks": ranks,
        "precision": str(dtype or torch.float32).removeprefix("torch."),
        "device": str(device),
        "notices": odd,
    }
    return Job(recipe, out, batch_size, facts, splits, tasks, model, stain, device, dtype, world, console, odd, checked)


def _check_same_tiles(run: RunFolder, root: Path, found: data.Dataset) -> None:
    """Raise RunError unless the tiles that were `found` in `root` are exactly those of the run's split."""
    split = data.load_split(run.split_file)
    before = {tile for side in (split.train, split.val, split.test, split.inner) for tile in side}
    now = {tile.id for tile in found.tiles}
    for names, what, cure in (
        (before - now, "missing", "Give --data the folder that the data were moved to"),
        (now - before, "new", "Take them away, or choose another --out to train with them"),
    ):
        if names:
            raise RunError(
                f"{root} does not hold exactly the {counted(len(before), 'tile')} of {run.path}: "
                f"{len(names)} {what}, first {min(names)}. {cure}."
            )


def share_of_batch(recipe: Recipe, before: int, now: int) -> int:
    """Images per rank and step on `now` ranks of a run that `before` ranks began; the sum over the ranks stays.

    Raises:
        OtherRanks: the sum is not divisible by `now`.
    """
    unit, images = (2 if recipe.data.sampler == "pairs" else 1), recipe.data.batch_size * before
    shares = images // unit
    if before != now and shares % now:
        fitting = ", ".join(str(ranks) for ranks in range(1, min(shares, _MOST_NAMED) + 1) if shares % ranks == 0)
        raise OtherRanks(
            f"the run takes {images} images in each step, {recipe.data.batch_size} on each of {before} ranks, and "
            f"{images} is not divisible by {now}; continue it on one of these numbers of ranks: {fitting}."
        )
    return images // now


def _describe(splits: datasets.Splits, root: Path, console: Console, *, by_tile: bool) -> None:
    say(notices.lines((one.path, one.reason) for one in splits.problems), console)
    count = partial(_count, by_tile=by_tile)
    tested = f", {count(splits.test)} to test" if splits.test.tiles else ""
    watching = f"{count(splits.inner)} to watch the training, " if splits.inner.tiles else ""
    console.print(
        f"data: {root}; {count(splits.train)} to train, {watching}{count(splits.validation)} held out{tested}"
    )
    console.print(f"split: {splits.origin}")
    for line in splits.summary:
        console.print(line)


def _odd_targets(tasks: Sequence[Task], splits: datasets.Splits) -> list[str]:
    sides = {"training": splits.train, "inner": splits.inner, "held-out": splits.validation, "test": splits.test}
    return [said for side, part in sides.items() for said in notices.of_targets(tasks, part, side)]


def say(odd: Sequence[str], console: Console) -> None:
    """Print each notice on its own line."""
    for notice in odd:
        console.print(f"note: {notice}")


def _generate(recipe: Recipe, beside: Path, console: Console) -> Path:
    if not recipe.data.generator:
        raise UsageError(f"recipe {recipe.name} needs data: add --data DIR.")
    is_slides = recipe.data.generator == "slides"
    folder = beside / ("generated-slides" if is_slides else f"{recipe.data.generator}-tiles")
    if not folder.exists():
        console.print(f"data: generating synthetic {'slides' if is_slides else 'tiles'}, once")
    return data.generate_slides(folder) if is_slides else data.generate(folder)


def _facts(root: Path, split_file: Path | None, splits: datasets.Splits) -> dict[str, Any]:
    """What evaluation and resuming need to know about the data."""
    return {
        "data": str(root.resolve()),
        "split_file": str(split_file.resolve()) if split_file else None,
        "split": splits.origin,
        "class_names": list(splits.train.class_names),
        "classes": {name: list(names) for name, names in splits.train.classes.items()},
        "training_patients": sorted({tile.group for tile in splits.train.tiles}),
        "validation_patients": sorted({tile.group for tile in splits.validation.tiles}),
        "test_patients": sorted({tile.group for tile in splits.test.tiles}),
        "inner_patients": sorted({tile.group for tile in splits.inner.tiles}),
        "training_images": len(splits.train),
        "validation_images": len(splits.validation),
        "inner_images": len(splits.inner),
    }


def of_sets(recipe: Recipe, splits: datasets.Splits) -> dict[str, dict[str, Any]]:
    """Name of each of data.sets -> its tasks, its images on each side, and its share of the training."""
    drawn = shares(recipe, splits.train)
    parts = {"training": splits.train, "validation": splits.validation, "test": splits.test, "inner": splits.inner}
    return {
        one.name: {
            "tasks": list(one.tasks),
            **{f"{side}_images": sum(tile.label == number for tile in part.tiles) for side, part in parts.items()},
            "share": drawn[one.name],
        }
        for number, one in enumerate(recipe.data.sets)
    }


def _count(folder: data.Dataset, by_tile: bool) -> str:
    patients = "" if by_tile else f" of {counted(len({tile.group for tile in folder.tiles}), 'patient')}"
    return f"{counted(len(folder), 'tile')}{patients}"
