"""Scores of each held-out image: evaluation.jsonl, one line per image, and thumbnails of selected images; likewise
evaluation-test.jsonl, without thumbnails.

A line is {"id", "patient", "tasks": {name: entry}}; tasks without a label for the image are omitted. "patient" is the
group of the split; if the split divides patients (by image or by day), "cluster" is the patient. The entry

- of a map, or of queries, has "score" (its Dice), "dice" and "jaccard" (means over structures), "true_area" and
  "predicted_area" (fractions of the image, all structures together); "counts" (structure -> pixels that are truly,
  wrongly and not found), "pixels" (right ones and all), "group" if the task has groups, and "structures", the number
  that are scored, if absent ones are not;
- of a vector with classes has "score" (the probability given to the true class), "class", "predicted", "probability"
  (of the predicted class) and "probabilities" (of each class, by name); of numbers "score" (the mean error, negative),
  "value" and "predicted";
- of a box has "score" and "iou", "value" and "predicted".

Auxiliary tasks (images, embeddings, auxiliary maps) have no entry.

A "thumbnail" is a JPEG in the run folder, so that the report does not need the data; "shown" is the reason:
"worst", "typical" (nearest the median) or "best".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..protocols import Batch
from ..utils.atomic_io import write_whole
from ..utils.json_toml import JsonObject
from .outlines import PREDICTED_COLOUR as PREDICTED_COLOUR
from .outlines import TRUE_COLOUR as TRUE_COLOUR
from .outlines import thumbnail

if TYPE_CHECKING:
    from ..data.dataset import ImageSource

FILE, TEST_FILE = "evaluation.jsonl", "evaluation-test.jsonl"
_SAMPLE = 32  # images whose masks are kept in case their score is near the median, known only at the end


@dataclass
class _Seen:
    """A candidate for a thumbnail: its score, its entry in the table and, for maps and boxes, true and predicted area
    (uint8 [H, W])."""

    score: float
    id: str
    entry: JsonObject
    masks: tuple[Tensor, Tensor] | None = None


@dataclass
class _Sample:
    """Keeps every n-th item; n is doubled whenever there are too many."""

    kept: list[_Seen] = field(default_factory=list)
    step: int = 1
    count: int = 0

    def add(self, one: _Seen) -> None:
        if self.count % self.step == 0:
            self.kept.append(one)
        self.count += 1
        if len(self.kept) > _SAMPLE:
            self.kept, self.step = self.kept[::2], self.step * 2


@dataclass
class ImageTable:
    """Collects the scores: pass it to `eval_loop.evaluate` as `visit`, then call `write`.

    Args:
        tasks: any; those with classes have `class_names`.
        keep: thumbnails per task of the best, the worst and the typical images each, at most a third of the images.
            For classes only the most confident mistakes are kept, for numbers none.
        clusters: id -> patient, of images whose patient is not their group.
    """

    tasks: Sequence[Any]
    keep: int = 6
    clusters: Mapping[str, str] = field(default_factory=dict)
    lines: list[JsonObject] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._best: dict[str, list[_Seen]] = {task.name: [] for task in self.tasks}
        self._worst: dict[str, list[_Seen]] = {task.name: [] for task in self.tasks}
        self._samples = {task.name: _Sample() for task in self.tasks}

    def __call__(self, batch: Batch, outputs: Mapping[str, Any]) -> None:
        """Add a batch with the model's outputs."""
        lines = [
            {"id": name, "patient": patient, "tasks": {}} for name, patient in zip(batch.ids, batch.groups, strict=True)
        ]
        for line in lines:
            if (cluster := self.clusters.get(line["id"], line["patient"])) != line["patient"]:
                line["cluster"] = cluster
        for task in self.tasks:
            rows = batch.has_label[:, task.column].nonzero()[:, 0]
            judge = self._judge_of(task)
            if judge is not None and len(rows):
                for row, one in judge(task, batch, rows, outputs[task.name]).items():
                    lines[row]["tasks"][task.name] = one.entry
        self.lines += lines

    def _judge_of(self, task: Any) -> Callable[[Any, Batch, Tensor, Any], dict[int, _Seen]] | None:
        kind = task.output.kind
        if kind == "vector":
            return self._judge_classes if getattr(task, "class_names", ()) else self._judge_numbers
        return {"map": self._judge_maps, "queries": self._judge_maps, "box": self._judge_boxes}.get(kind)

    def _judge_maps(self, task: Any, batch: Batch, rows: Tensor, output: Any) -> dict[int, _Seen]:
        from ..tasks.metrics import overlap  # it imports torchmetrics: 270 MB, which prediction does not need

        answers = task.predict(output, batch)[rows], batch.targets[task.name][rows]
        predicted, target = structures(task, *answers)
        more = _map_counts(task, batch, rows, predicted, target, _right_pixels(task, *answers))
        empty = getattr(task, "empty", "one")
        scores = [overlap(predicted, target, score, 0.0 if empty == "zero" else 1.0) for score in ("dice", "jaccard")]
        if empty == "skip":  # as in the metrics: absent structures are excluded
            there = target.bool().flatten(2).any(2)
            scores = [torch.where(there, score, torch.nan) for score in scores]
        dice, jaccard = (score.nanmean(1).tolist() for score in scores)
        either = [mask.bool().any(1) for mask in (target, predicted)]  # [B, H, W]
        areas = [mask.double().mean((1, 2)).tolist() for mask in either]
        seen = {}
        for i, row in enumerate(rows.tolist()):
            if isnan(dice[i]) or not more[i]["pixels"][1]:  # all structures are absent and skipped, or all is ignored
                continue
            entry = {"score": dice[i], "dice": dice[i], "jaccard": jaccard[i]}
            entry |= {"true_area": areas[0][i], "predicted_area": areas[1][i]} | more[i]
            masks = (either[0][i].byte().cpu(), either[1][i].byte().cpu())
            seen[row] = _Seen(dice[i], batch.ids[row], entry, masks)
        return self._both_ends(task, seen)

    def _judge_boxes(self, task: Any, batch: Batch, rows: Tensor, output: Any) -> dict[int, _Seen]:
        from ..tasks.metrics import box_overlap

        found, true = task.predict(output, batch)[rows], batch.targets[task.name][rows]
        seen = {}
        for i, row in enumerate(rows.tolist()):
            iou = box_overlap(found[i : i + 1], true[i : i + 1])
            entry = {"score": iou, "iou": iou, "value": true[i].tolist(), "predicted": found[i].tolist()}
            height, width = batch.images.shape[-2:]
            masks = (_filled(true[i], height, width), _filled(found[i], height, width))
            seen[row] = _Seen(iou, batch.ids[row], entry, masks)
        return self._both_ends(task, seen)

    def _judge_classes(self, task: Any, batch: Batch, rows: Tensor, output: Tensor) -> dict[int, _Seen]:
        logits = output[rows].float()
        shares = class_probabilities(task, logits).tolist()
        answers = zip(task.predict(output, batch)[rows].tolist(), batch.targets[task.name][rows].tolist(), strict=True)
        seen = {}
        for i, (row, (found, true)) in enumerate(zip(rows.tolist(), answers, strict=True)):
            classes = {"class": task.class_names[true], "predicted": task.class_names[found]}
            entry = {"score": shares[i][true], **classes, "probability": shares[i][found]}
            entry["probabilities"] = dict(zip(task.class_names, shares[i], strict=True))
            seen[row] = _Seen(-shares[i][found], batch.ids[row], entry)  # the most confident mistakes are the worst
        wrong = [one for one in seen.values() if one.entry["class"] != one.entry["predicted"]]
        self._worst[task.name] = _first(self._worst[task.name] + wrong, self.keep)
        return seen

    def _judge_numbers(self, task: Any, batch: Batch, rows: Tensor, output: Tensor) -> dict[int, _Seen]:
        found = task.predict(output, batch)[rows].float()
        true = batch.targets[task.name][rows].float().reshape(found.shape)
        errors = (found - true).abs().mean(1).tolist()
        plain = [value.squeeze(1).tolist() if value.shape[1] == 1 else value.tolist() for value in (true, found)]
        return {
            row: _Seen(-error, batch.ids[row], {"score": -error, "value": value, "predicted": guess})
            for row, error, value, guess in zip(rows.tolist(), errors, *plain, strict=True)
        }

    def _both_ends(self, task: Any, seen: dict[int, _Seen]) -> dict[int, _Seen]:
        self._best[task.name] = _first([*self._best[task.name], *seen.values()], self.keep, best=True)
        self._worst[task.name] = _first([*self._worst[task.name], *seen.values()], self.keep)
        for one in seen.values():
            self._samples[task.name].add(one)
        return seen

    def write(self, folder: Path, images: Mapping[str, ImageSource]) -> None:
        """Write `folder`/evaluation.jsonl and `folder`/tiles/*.jpg; `images` maps ids to their pictures."""
        tiles = folder / "tiles"
        if tiles.is_symlink():  # its target is not ours to empty
            tiles.unlink()
        tiles.mkdir(parents=True, exist_ok=True)
        for old in tiles.glob("*.jpg"):
            old.unlink()
        number = 0
        for task in self.tasks:
            for shown, one in self._chosen(task.name):
                number += 1
                name = f"tiles/{number:03d}.jpg"
                thumbnail(images[one.id], one.masks).save(folder / name, quality=80)
                one.entry |= {"thumbnail": name, "shown": shown}
        self.write_lines(folder / FILE)

    def write_lines(self, path: Path) -> None:
        """Write the lines alone."""
        write_whole(path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def _chosen(self, task: str) -> Iterator[tuple[str, _Seen]]:
        """The images that get a thumbnail, each once, with the reason."""
        sample = self._samples[task]
        if not sample.count:  # classes show only mistakes
            yield from (("worst", one) for one in self._worst[task])
            return
        scores = sorted(line["tasks"][task]["score"] for line in self.lines if task in line["tasks"])
        middle, count = scores[len(scores) // 2], min(self.keep, max(1, len(scores) // 3))
        near = sorted(sample.kept, key=lambda one: abs(one.score - middle))
        taken: set[str] = set()
        for shown, found in (("worst", self._worst[task]), ("best", self._best[task]), ("typical", near)):
            for one in [one for one in found if one.id not in taken][:count]:
                taken.add(one.id)
                yield shown, one


def class_probabilities(task: Any, logits: Tensor) -> Tensor:
    """[B, C] from logits [B, C], or [B, 2] from a finding's [B, 1]."""
    if logits.shape[1] > 1:
        return (task.decided(logits) if hasattr(task, "decided") else logits).softmax(1)
    there = logits.sigmoid()
    return torch.cat([1 - there, there], 1)


def structures(task: Any, predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both as [B, C, H, W] of 0 and 1: masks unchanged, class maps with a channel for each class except the background;
    ignored pixels are 0 in all channels."""
    if predicted.dtype == torch.bool:
        return predicted, target
    names = torch.arange(1, task.output.channels, device=target.device)[:, None, None]
    valid = target != getattr(task, "ignore_index", -1)
    return (predicted == names) & valid, (target == names) & valid


def _right_pixels(task: Any, predicted: Tensor, target: Tensor) -> list[list[int]]:
    """For each image: its pixels that are right, of all that count; of several masks those of each."""
    valid = torch.ones_like(target, dtype=torch.bool)
    if predicted.dtype != torch.bool:
        valid = target != getattr(task, "ignore_index", -1)
    right = (predicted == target.to(predicted.dtype)) & valid
    return torch.stack([right.flatten(1).sum(1), valid.flatten(1).sum(1)], 1).tolist()


def _map_counts(
    task: Any, batch: Batch, rows: Tensor, predicted: Tensor, target: Tensor, pixels: list[list[int]]
) -> list[JsonObject]:
    """For each image the entries that later scores and intervals need: see the module's text."""
    found, true = (mask.bool().flatten(2) for mask in (predicted, target))  # [B, C, H W]
    counts = torch.stack([(found & true).sum(2), (found & ~true).sum(2), (~found & true).sum(2)], 2).tolist()
    scoring = getattr(task, "scoring", None)
    names = list(getattr(scoring, "names", ()))[-found.shape[1] :] or [str(n) for n in range(found.shape[1])]
    entries: list[JsonObject] = [
        {"pixels": own, "counts": dict(zip(names, each, strict=True))} for own, each in zip(pixels, counts, strict=True)
    ]
    if scoring is not None and (groups := scoring.grouping.of(batch)) is not None:
        for entry, group in zip(entries, groups[rows].tolist(), strict=True):
            entry["group"] = scoring.grouping.names[group]
    if getattr(task, "empty", "") == "skip":
        for entry, number in zip(entries, true.any(2).sum(1).tolist(), strict=True):
            entry["structures"] = number
    return entries


def _filled(box: Tensor, height: int, width: int) -> Tensor:
    """uint8 [H, W] of a box in fractions of the image: centre x, centre y, width, height."""
    x, y, w, h = box.tolist()
    mask = torch.zeros(height, width, dtype=torch.uint8)
    top, left = (max(0, round(low * side)) for low, side in ((y - h / 2, height), (x - w / 2, width)))
    mask[top : max(0, round((y + h / 2) * height)), left : max(0, round((x + w / 2) * width))] = 1
    return mask


def _first(seen: list[_Seen], count: int, *, best: bool = False) -> list[_Seen]:
    """The `count` worst or best; NaN counts as the worst."""

    def key(one: _Seen) -> float:
        score = one.score if one.score == one.score else float("-inf")
        return -score if best else score

    return sorted(seen, key=key)[:count]
