"""Predictions for whole slides: maps, outlines, a JSON line per tile and one per slide.

Each slide has its own folder, `OUT/SLIDE.svs/`, which is moved into place after all files are written: an interrupted
slide has none. An unreadable slide is a line of `quarantine.jsonl`; the others are still predicted.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import data
from ..distributed import World
from ..training.run_dir import RunError
from ..utils.atomic_io import write_whole
from ..utils.json_toml import JsonMapping, JsonObject, read_json
from .helping import HelperError, Helpers, Outputs, help_with, run
from .output_dir import Predicted, answer, entry_name, inside, row_of
from .preparing import Prepared, open_slide_tiles, prepared_ahead
from .records import LINES, QUARANTINE, append_lines, rewrite
from .sharing import share_batches, share_helpers, share_slides, size_of
from .slide_maps import MapOptions, SlideMaps

SLIDE_SUMMARY, TILES = "summary.json", "tiles.jsonl"
"""In the folder of each slide. A run's folder has another summary.json, with the metrics of the run."""

_FACTS = ("slide", "file", "tiles", "damaged", "tissue", "mpp", "mpp_source", "downsample", "problems")
_SAME_MPP = 1e-6
_FIELD = ("x", "y", "width", "height")


def check_places(slides: Iterable[str], out: Path) -> None:
    """Raise RunError if the folder of a slide cannot be created: a file has its name (`out` has the folders of the
    slides), or a folder with other files."""
    for name in slides:
        folder = inside(out, name)
        if any(part.startswith(".") for part in Path(name).parts):  # hidden folders are unfinished ones
            raise RunError(f"{name} is hidden, or in a hidden folder, and so its predictions would be; rename it.")
        if folder.is_file():
            raise RunError(f"{folder} is a file, not the folder of its predictions; choose another --out.")
        if folder.is_dir() and not (folder / SLIDE_SUMMARY).exists() and any(folder.iterdir()):
            raise RunError(f"{folder} has no {SLIDE_SUMMARY}, and is not empty; remove it, or choose another --out.")


def predict_slides(
    slides: Mapping[str, Path],
    out: Path,
    *,
    model: nn.Module,
    tasks: Sequence[Any],
    grid: data.GridOptions,
    read: Callable[[data.Dataset], data.TileLoader],
    device: torch.device,
    dtype: torch.dtype | None = None,
    mpp: Mapping[str, float] = MappingProxyType({}),
    note: Callable[[str], None] = lambda line: None,
    world: World | None = None,
    options: MapOptions | None = None,
    batch_size: int = 0,
) -> Predicted:
    """Predict slides that have no folder in `out` or have changed. Several ranks share them by their bytes; if there
    are fewer slides than ranks, the others help with their batches.

    Lines are sorted by name; lines of other slides are kept.

    Args:
        slides: name -> file; names are paths below `out`.
        out: an existing folder.
        model: as trained, on `device`.
        tasks: its tasks.
        grid: how slides are cut.
        read: a loader of tiles, in their order.
        device: of the model.
        dtype: of autocast; None computes in float32.
        mpp: name -> micrometres per pixel of level 0, if given.
        note: called with a line for each slide that is finished, set aside or helped with.
        world: the ranks, each of which calls this; one by default.
        options: what is written of maps.
        batch_size: of `read`'s loaders; with 0, ranks do not help each other.
    """
    options, world = options or MapOptions(), world or World()
    if any(task.output.kind in ("map", "queries") for task in tasks):
        data.check_outlines(options.outlines(None))
    model.eval()
    plan = world.broadcast(_plan(slides, out, mpp, world.size, helping=batch_size > 0) if world.rank == 0 else None)
    assert plan is not None
    work = _Work(out, tasks, options, device, world.rank, lambda prepared: run(prepared, model, device, dtype))
    numbers, unreadable = {name: number for number, name in enumerate(slides, 1)}, set()

    def prepare(name: str, part: int, parts: int) -> Prepared:
        cut = data.cut_slide(slides[name], name, grid, mpp.get(name))
        own = share_batches(cut.tiles, batch_size, part, parts) if parts > 1 else cut.tiles
        return open_slide_tiles(cut, read, own)

    own = plan.shares[world.rank]
    for name, ranks in plan.helpers.items():
        if world.rank in ranks:
            note(f"rank {world.rank} helps with {name}")
            owner = plan.shares.index([name])
            begin = partial(prepare, name, 1 + ranks.index(world.rank), 1 + len(ranks))
            help_with(begin, work.run, lambda message, owner=owner: world.send(message, owner))
    with closing(prepared_ahead(own, lambda name: prepare(name, 0, 1 + len(plan.helpers[name])), device)) as coming:
        for name, begun in coming:
            helpers = Helpers(world, plan.helpers[name], device)
            try:
                try:
                    with begun.result() as prepared:
                        summary = _one(prepared, name, work, helpers)
                except (data.SlideError, data.TileReadError, HelperError):
                    if not helpers.ranks:
                        raise
                    helpers.drain()
                    with prepare(name, 0, 1) as prepared:  # what is accepted or said does not depend on the ranks
                        summary = _one(prepared, name, work, Helpers(world, (), device))
            except (data.SlideError, data.TileReadError) as error:
                reason = str(error).removeprefix(f"{slides[name]}: ")
                entry = {"slide": name, "file": str(slides[name]), "reason": reason}
                append_lines(out / QUARANTINE, [entry], world.rank)
                note(f"{numbers[name]}/{len(slides)} {name}: set aside: {reason}")
                unreadable.add(name)
                continue
            if world.rank == 0:  # the other ranks' lines are added at the end
                append_lines(out / LINES, [summary])
            left_out = f", {summary['damaged']} of them damaged" if summary["damaged"] else ""
            note(f"{numbers[name]}/{len(slides)} {name}: {summary['tiles']} tiles{left_out}")
    unreadable = world.gather_entries(dict.fromkeys(unreadable)).keys()  # waits for all ranks
    if world.rank == 0:
        _write_summaries(out, without=unreadable)
        rewrite(out / QUARANTINE, "slide")
    return Predicted("slides", len(slides) - len(plan.done) - len(unreadable), len(plan.done), len(unreadable))


class _Plan(NamedTuple):
    """The slides that are done, each rank's share of the others, and slide -> the ranks that help with it."""

    done: set[str]
    shares: list[list[str]]
    helpers: dict[str, list[int]]


def _plan(slides: Mapping[str, Path], out: Path, mpp: Mapping[str, float], ranks: int, *, helping: bool) -> _Plan:
    """Also drops the lines of slides that are not done."""
    done = {name for name, path in slides.items() if _is_done(out / name, path, mpp.get(name))}
    left = slides.keys() - done
    _write_summaries(out, without=left)
    rewrite(out / QUARANTINE, "slide", lambda name: name not in left)
    sizes = {name: size_of(path) for name, path in slides.items() if name in left}
    shares = share_slides(sizes, ranks)
    helpers = share_helpers(sizes, shares) if helping else {}
    return _Plan(done, shares, {name: helpers.get(name, []) for name in sizes})


class _Work(NamedTuple):
    """What all slides have in common; `run` runs the network on the batches of one."""

    out: Path
    tasks: Sequence[Any]
    options: MapOptions
    device: torch.device
    rank: int
    run: Callable[[Prepared], Iterator[Outputs]]


@torch.inference_mode()
def _one(prepared: Prepared, name: str, work: _Work, helpers: Helpers) -> JsonObject:
    """Predict one slide; returns its line."""
    cut, tasks, out, folder = prepared.cut, work.tasks, work.out, work.out / name
    unfinished = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with ExitStack() as ends:
        ends.callback(shutil.rmtree, unfinished, ignore_errors=True)
        maps, means = SlideMaps(tasks, cut, unfinished, work.device, work.options), _Means(tasks)
        ends.callback(maps.discard)
        (unfinished / TILES).touch()
        for tiles, outputs in helpers.merged(work.run(prepared), cut.tiles):
            maps.add(tiles, outputs)
            lines = list(_tile_lines(tasks, cut, tiles, outputs))
            for line in lines:
                means.add(line)
            append_lines(unfinished / TILES, lines)
        prepared.close()  # outlines need memory of their own
        damaged = [_place(entry) for entry in prepared.quarantine + helpers.quarantine]
        of_slide = {"slide": name, "file": asdict(cut.identity), "tiles": len(cut.tiles), "damaged": len(damaged)}
        of_map = {"tissue": cut.tissue, "mpp": cut.mpp, "mpp_source": cut.mpp_source, "downsample": cut.downsample}
        of_map["problems"] = list(cut.problems)
        of_maps = {task: _below(name, words) for task, words in maps.close().items()}
        of_tasks = {entry_name(task, _FACTS): words for task, words in {**means.words(), **of_maps}.items()}
        summary = {**of_slide, **of_map, **of_tasks}
        write_whole(unfinished / SLIDE_SUMMARY, json.dumps(summary, indent=1) + "\n")
        # Written before the folder: a slide with a folder must have its lines; lines without one are dropped later.
        append_lines(out / QUARANTINE, ({"slide": name, **entry} for entry in damaged), work.rank)
        shutil.rmtree(folder, ignore_errors=True)  # predictions of the earlier version of the slide
        os.replace(unfinished, folder)
    return summary


def _tile_lines(
    tasks: Sequence[Any], cut: data.SlideCut, tiles: Sequence[str], outputs: Mapping[str, Any]
) -> Iterable[JsonObject]:
    for row, tile in enumerate(tiles):
        line: JsonObject = dict(zip(_FIELD, cut.fields[tile], strict=True))
        for task in tasks:
            found = answer(task, row_of(outputs[task.name], row), cut.fields[tile])
            if found is not None:
                line[entry_name(task.name, _FIELD)] = found
        yield line


class _Means:
    """Means over the tiles of a slide, of probabilities (for the task's decision) and numbers. Boxes have no mean."""

    def __init__(self, tasks: Sequence[Any]):
        self._tasks = [task for task in tasks if task.output.kind == "vector"]
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0

    def add(self, line: JsonMapping) -> None:
        self._count += 1
        for task in self._tasks:
            told = line[entry_name(task.name, _FIELD)]
            found = told.get("value")
            values = list(told["probabilities"].values()) if found is None else found
            value = torch.tensor(values, dtype=torch.float64)
            self._sums[task.name] = self._sums.get(task.name, torch.zeros_like(value)) + value

    def words(self) -> dict[str, JsonObject]:
        """Task -> output; {} for a slide without tiles."""
        return {task.name: self._of(task) for task in self._tasks if task.name in self._sums}

    def _of(self, task: Any) -> JsonObject:
        mean, names = self._sums[task.name] / self._count, getattr(task, "class_names", ())
        if not names:
            return {"value": mean.tolist()}
        logits = mean.log() if task.output.channels > 1 else torch.logit(mean[1:])
        probabilities = dict(zip(names, mean.tolist(), strict=True))
        return {"class": names[int(task.predict(logits[None]))], "probabilities": probabilities}


def _below(folder: str, words: JsonMapping) -> JsonObject:
    """`words` with file names prefixed by the folder."""
    found = {}
    for key, value in words.items():
        told = f"{folder}/{value}" if isinstance(value, str) else value
        found[key] = _below(folder, value) if isinstance(value, dict) else told
    return found


def _place(entry: JsonMapping) -> JsonObject:
    return {key: value for key, value in entry.items() if key != "epoch"}


def _is_done(folder: Path, path: Path, mpp: float | None) -> bool:
    """Whether `folder` holds predictions of the current version of the slide, cut with the same `mpp` if given."""
    if not (folder / SLIDE_SUMMARY).exists():
        return False
    try:
        identity = asdict(data.identify(path))
    except data.SlideError:
        return False  # predicting it again reports the reason
    summary = _summary(folder / SLIDE_SUMMARY)
    was_given = summary.get("mpp_source") == "given"
    same_mpp = was_given == (mpp is not None) and (
        mpp is None or abs(summary["mpp"] / summary["downsample"] / mpp - 1) < _SAME_MPP
    )
    return summary.get("file") == identity and same_mpp


def _write_summaries(out: Path, without: Collection[str]) -> None:
    """Rewrite predictions.jsonl sorted by name, for slides that have a folder and without some others."""
    summaries = [summary for summary in _summaries(out) if summary["slide"] not in without]
    write_whole(out / LINES, "".join(json.dumps(summary) + "\n" for summary in summaries))


def _summaries(out: Path) -> list[JsonObject]:
    """The summaries of all finished slides, by name; unfinished folders are hidden."""
    paths = sorted(out.rglob(SLIDE_SUMMARY))
    return [_summary(path) for path in paths if not any(part[0] == "." for part in path.relative_to(out).parts)]


def _summary(path: Path) -> JsonObject:
    try:
        found = read_json(path)
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); remove {path.parent} to predict the slide again.") from error
    if not isinstance(found, dict) or not isinstance(found.get("slide"), str):
        raise RunError(f"{path} is damaged: it names no slide; remove {path.parent} to predict the slide again.")
    return found
