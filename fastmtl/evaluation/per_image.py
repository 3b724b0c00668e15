"""Scores of each held-out image: evaluation.jsonl, one line per image, and thumbnails of selected images.

A line is {"id", "patient", "tasks": {name: entry}}; tasks without a label for the image are omitted. The entry

- of a map, or of queries, has "score" (its Dice), "dice" and "jaccard" (means over structures), "true_area" and
  "predicted_area" (fractions of the image, all structures together);
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

from ..data import open_picture
from ..protocols import Batch
from ..tasks.metrics import box_overlap, overlap
from ..utils.atomic_io import write_whole
from ..utils.json_toml import JsonObject

if TYPE_CHECKING:
    import numpy as np

    from ..data.dataset import ImageSource

TRUE_COLOUR, PREDICTED_COLOUR = (
    (64, 196, 255),
    (255, 214, 0),
)  # distinguishable for every kind of colour vision, and on H&E
_SIDE = 320  # longer side of a thumbnail, pixels
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
    """

    tasks: Sequence[Any]
    keep: int = 6
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
        predicted, target = _structures(task, task.predict(output, batch)[rows], batch.targets[task.name][rows])
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
            if isnan(dice[i]):
                continue
            entry = {"score": dice[i], "dice": dice[i], "jaccard": jaccard[i]}
            entry |= {"true_area": areas[0][i], "predicted_area": areas[1][i]}
            masks = (either[0][i].byte().cpu(), either[1][i].byte().cpu())
            seen[row] = _Seen(dice[i], batch.ids[row], entry, masks)
        return self._both_ends(task, seen)

    def _judge_boxes(self, task: Any, batch: Batch, rows: Tensor, output: Any) -> dict[int, _Seen]:
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
        shares = class_probabilities(logits).tolist()
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
        tiles.mkdir(parents=True, exist_ok=True)
        for old in tiles.glob("*.jpg"):
            old.unlink()
        number = 0
        for task in self.tasks:
            for shown, one in self._chosen(task.name):
                number += 1
                name = f"tiles/{number:03d}.jpg"
                _draw(images[one.id], one.masks).save(folder / name, quality=80)
                one.entry |= {"thumbnail": name, "shown": shown}
        write_whole(folder / "evaluation.jsonl", "".join(json.dumps(line) + "\n" for line in self.lines))

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


def class_probabilities(logits: Tensor) -> Tensor:
    """[B, C] from logits [B, C], or [B, 2] from a finding's [B, 1]."""
    if logits.shape[1] > 1:
        return logits.softmax(1)
    there = logits.sigmoid()
    return torch.cat([1 - there, there], 1)


def _structures(task: Any, predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both as [B, C, H, W] of 0 and 1: masks unchanged, class maps with a channel for each class except the background;
    ignored pixels are 0 in all channels."""
    if predicted.dtype == torch.bool:
        return predicted, target
    names = torch.arange(1, task.output.channels, device=target.device)[:, None, None]
    valid = target != getattr(task, "ignore_index", -1)
    return (predicted == names) & valid, (target == names) & valid


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


def _draw(picture: ImageSource, masks: tuple[Tensor, Tensor] | None) -> Any:
    """The picture at thumbnail size, the true outline solid and the predicted one dashed over it."""
    import numpy as np
    from PIL import Image

    image = Image.fromarray(open_picture(picture))
    scale = _SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float32).copy()  # [H, W, 3]
    if masks is None:
        return Image.fromarray(pixels.astype(np.uint8))
    true, predicted = (
        np.asarray(Image.fromarray(mask.numpy() * 255).resize(size, Image.Resampling.BICUBIC)) > 127 for mask in masks
    )
    rows, columns = np.indices(true.shape)
    lines = (_outline(true), _outline(predicted) & ((rows + columns) // 6 % 3 > 0))
    pixels[_grown(lines[0] | lines[1])] *= 0.45  # a dark seam keeps both colours visible on white and on dark tissue
    for line, colour in zip(lines, (TRUE_COLOUR, PREDICTED_COLOUR), strict=True):
        pixels[line] = colour
    return Image.fromarray(pixels.astype(np.uint8))


def _outline(mask: np.ndarray) -> np.ndarray:
    """The mask's pixels within two of its edge; the picture's border is not an edge."""
    return mask & _grown(_grown(~mask))


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and its four-neighbours."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown
