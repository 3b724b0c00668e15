"""How each held-out image fared: evaluation.jsonl, one line per image, and thumbnails of the images worth a look.

A line is {"id", "patient", "tasks": {name: entry}}; a task that the image has no label for is left out. The entry

- of a map has "score" (its Dice), "dice", "jaccard", "true_area" and "predicted_area" (shares of the image);
- of a vector has "score" (the probability given to the true class), "class", "predicted" and "probability" (of the
  predicted class).

Entries with a "thumbnail" name a JPEG of the run folder, so that the report is made, and made again, without the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .data import open_picture
from .metrics import overlap
from .protocols import Batch

if TYPE_CHECKING:
    import numpy as np

    from .data.dataset import Picture

TRUE_COLOUR, PREDICTED_COLOUR = (64, 196, 255), (255, 214, 0)  # apart for every kind of colour vision, and on H&E
_SIDE = 320  # longer side of a thumbnail, pixels


@dataclass
class _Seen:
    """A candidate for a thumbnail: its score, its entry in the table and, for maps, both masks (uint8 [H, W])."""

    score: float
    id: str
    entry: dict[str, Any]
    masks: tuple[Tensor, Tensor] | None = None


@dataclass
class ImageTable:
    """Give it to `inference.evaluate` as `visit`, then `write` it.

    Args:
        tasks: objects with `name`, `output.kind`, `predict`, and for vectors `class_names`.
        keep: thumbnails per task of the best images, and as many of the worst. A vector task keeps its surest
            mistakes alone.
    """

    tasks: Sequence[Any]
    keep: int = 6
    lines: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._best: dict[str, list[_Seen]] = {task.name: [] for task in self.tasks}
        self._worst: dict[str, list[_Seen]] = {task.name: [] for task in self.tasks}

    def __call__(self, batch: Batch, outputs: Mapping[str, Tensor]) -> None:
        """Add a batch with the model's logits."""
        lines = [
            {"id": name, "patient": patient, "tasks": {}} for name, patient in zip(batch.ids, batch.groups, strict=True)
        ]
        for column, task in enumerate(self.tasks):
            rows = batch.present[:, column].nonzero()[:, 0].tolist()
            if rows:
                judge = self._judge_maps if task.output.kind == "map" else self._judge_vectors
                names = [batch.ids[row] for row in rows]
                seen = judge(task, names, outputs[task.name][rows].float(), batch.targets[task.name][rows])
                for row, one in zip(rows, seen, strict=True):
                    lines[row]["tasks"][task.name] = one.entry
        self.lines += lines

    def _judge_maps(self, task: Any, names: Sequence[str], logits: Tensor, target: Tensor) -> list[_Seen]:
        predicted = task.predict(logits)
        dice, jaccard = (overlap(predicted, target, score).mean(1).tolist() for score in ("dice", "jaccard"))
        areas = [mask.bool().flatten(1).double().mean(1).tolist() for mask in (target, predicted)]
        seen = []
        for i, name in enumerate(names):
            entry = {"score": dice[i], "dice": dice[i], "jaccard": jaccard[i]}
            seen.append(_Seen(dice[i], name, entry | {"true_area": areas[0][i], "predicted_area": areas[1][i]}))
        for i, one in enumerate(seen):
            one.masks = (target[i].any(0).byte().cpu(), predicted[i].any(0).byte().cpu())
        self._best[task.name] = _first(self._best[task.name] + seen, self.keep, best=True)
        self._worst[task.name] = _first(self._worst[task.name] + seen, self.keep)
        return seen

    def _judge_vectors(self, task: Any, names: Sequence[str], logits: Tensor, target: Tensor) -> list[_Seen]:
        probabilities = logits.softmax(1).tolist()
        seen = []
        for name, row, true, found in zip(
            names, probabilities, target.tolist(), task.predict(logits).tolist(), strict=True
        ):
            classes = {"class": task.class_names[true], "predicted": task.class_names[found]}
            # Of the mistakes, the surest are the worst.
            seen.append(_Seen(-row[found], name, {"score": row[true], **classes, "probability": row[found]}))
        wrong = [one for one in seen if one.entry["class"] != one.entry["predicted"]]
        self._worst[task.name] = _first(self._worst[task.name] + wrong, self.keep)
        return seen

    def write(self, folder: Path, images: Mapping[str, Picture]) -> None:
        """Leave `folder`/evaluation.jsonl and `folder`/tiles/*.jpg; `images` maps ids to their pictures."""
        tiles = folder / "tiles"
        tiles.mkdir(parents=True, exist_ok=True)
        for old in tiles.glob("*.jpg"):
            old.unlink()
        number = 0
        for task in self.tasks:
            for one in {seen.id: seen for seen in self._best[task.name] + self._worst[task.name]}.values():
                number += 1
                name = f"tiles/{number:03d}.jpg"
                _draw(images[one.id], one.masks).save(folder / name, quality=80)
                one.entry["thumbnail"] = name
        temporary = folder / ".evaluation.jsonl.tmp"
        temporary.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")
        temporary.replace(folder / "evaluation.jsonl")


def _first(seen: list[_Seen], count: int, *, best: bool = False) -> list[_Seen]:
    """The `count` worst or best; a score that is not a number counts as the worst."""

    def key(one: _Seen) -> float:
        score = one.score if one.score == one.score else float("-inf")
        return -score if best else score

    return sorted(seen, key=key)[:count]


def _draw(picture: Picture, masks: tuple[Tensor, Tensor] | None) -> Any:
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
    """The mask's pixels within two of its edge; where it meets the picture's border there is no edge."""
    return mask & _grown(_grown(~mask))


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and its four-neighbours."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown
