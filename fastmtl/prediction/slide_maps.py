"""Maps of one slide: write the network's outputs for its tiles as tiled TIFF files, outlines and overlays.

Probabilities of overlapping tiles are averaged, then the task's threshold or the most likely class is applied. Pixels
without a tile are 0, like the background.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .. import data
from ..data.slide_output.class_colours import class_colour
from ..utils.atomic_io import naming
from ..utils.json_toml import JsonObject
from ..utils.suggestions import file_name
from .output_dir import entry_name, inside, rows_of
from .overlay import Overlay, slide_thumbnail
from .stitching import Band, Rows

_KINDS = ("map", "queries")
_FACTS = ("outlines", "outlines_min_area", "probabilities")  # of a task's files in summary.json
_AT_ONCE = 2**20  # probabilities of tiles


@dataclass(frozen=True)
class MapOptions:
    """What is written of a slide's maps. Without a known scale, a micrometre is a pixel of the map.

    Attributes:
        min_area: of an outline or a hole in it, square micrometres; smaller ones are left out, smaller holes filled.
        tolerance: how far a simplified outline may be from the map's pixels, micrometres; 0 does not simplify.
        probabilities: also write the probabilities.
    """

    min_area: float = 0.0
    tolerance: float = 0.0
    probabilities: bool = False

    def outlines(self, mpp: float | None) -> data.OutlineOptions:
        """The same in pixels of a map."""
        return data.OutlineOptions(self.min_area / (mpp or 1.0) ** 2, self.tolerance / (mpp or 1.0))


class SlideMaps:
    """Writes of each task `folder`/TASK.tif (TASK/STRUCTURE.tif for structures that may overlap), an overlay TASK.png
    (TASK/STRUCTURE.png), TASK.geojson, and with `probabilities` TASK.ome.tif.

    Args:
        tasks: those without maps are ignored.
        cut: how the slide was cut.
        folder: an existing folder.
        device: of the outputs.
        options: what is written.
    """

    def __init__(
        self, tasks: Sequence[Any], cut: data.SlideCut, folder: Path, device: torch.device, options: MapOptions
    ):
        self._cut = cut
        self._tasks = {task: _Decision(task) for task in tasks if task.output.kind in _KINDS}
        self._channels = channels = sum(task.output.channels for task in self._tasks)
        self._band = Band(channels, cut.tile_size, cut.width, cut.height, device) if channels else None
        self._written = {task: _Written(task, decision, cut, folder, options) for task, decision in self._tasks.items()}

    def add(self, tiles: Sequence[str], outputs: Mapping[str, Any]) -> None:
        """Add the outputs for these tiles, given by id in the slide's order."""
        if self._band is None:
            return
        side = self._cut.tile_size
        at_once = max(1, _AT_ONCE // (self._channels * side * side))
        for first in range(0, len(tiles), at_once):
            some = slice(first, first + at_once)
            parts = [
                one.probabilities(rows_of(outputs[task.name], some), (side, side)) for task, one in self._tasks.items()
            ]
            for name, probabilities in zip(tiles[some], torch.cat(parts, 1), strict=True):
                x, y = self._cut.places[name]
                self._write(self._band.until(y))
                self._band.add(x, probabilities)

    def close(self) -> dict[str, JsonObject]:
        """Write the files; returns task -> the facts about its maps, in JSON types."""
        if self._band is not None:
            self._write(self._band.until(self._cut.height))
            self._band = None
        slide = slide_thumbnail(self._cut.path) if self._written else np.zeros((1, 1, 3), np.uint8)
        return {task.name: written.close(slide) for task, written in self._written.items()}

    def discard(self) -> None:
        """Discard unwritten maps."""
        for written in self._written.values():
            written.discard()

    def _write(self, finished: Iterable[Rows]) -> None:
        for rows in finished:
            means = rows.means.split([task.output.channels for task in self._tasks])
            for (task, decision), part in zip(self._tasks.items(), means, strict=True):
                self._written[task].add(decision.of(part), part, rows)


class _Decision:
    """Converts a task's logits to probabilities that can be averaged, and their mean to a prediction."""

    def __init__(self, task: Any):
        self._task, self._is_queries = task, task.output.kind == "queries"
        # Tasks with masks use a sigmoid per channel, tasks with classes a softmax over the channels.
        self.is_masks = not self._is_queries and self._answers(torch.zeros(1, task.output.channels, 1, 1))

    def probabilities(self, output: Any, size: tuple[int, int]) -> Tensor:
        """float32 [B, C, *size]."""
        if self._is_queries:
            return self._task.scores(output, size)
        logits = F.interpolate(output.float(), size, mode="bilinear", align_corners=False)
        return logits.sigmoid() if self.is_masks else logits.softmax(1)

    def of(self, means: Tensor) -> Tensor:
        """Mean probabilities [C, h, w] -> bool [C, h, w] of masks, else uint8 [1, h, w]."""
        if self._is_queries:
            return means.argmax(0, keepdim=True).to(torch.uint8)
        return self._task.predict(torch.logit(means)[None] if self.is_masks else means.log()[None])[0]

    def _answers(self, logits: Tensor) -> bool:
        return self._task.predict(logits).dtype == torch.bool


class _Written:
    """The files of a task for one slide, with pixel counts per value."""

    def __init__(self, task: Any, decision: _Decision, cut: data.SlideCut, folder: Path, options: MapOptions):
        self._name, self._cut, self._folder, self._options = task.name, cut, folder, options
        structures: tuple[str, ...] = tuple(getattr(task, "structures", (task.name,)))
        self._is_classes = not decision.is_masks and len(structures) > 2
        if self._is_classes:
            self._values = {f"{task.name}.tif": dict(enumerate(structures))}
        elif len(structures) > 1 and decision.is_masks:
            self._values = {f"{task.name}/{file_name(one)}.tif": {255: one} for one in structures}
        else:
            self._values = {f"{task.name}.tif": {255: structures[len(structures) - 1]}}
        self._counts = {name: np.zeros(256, np.int64) for name in self._values}
        self._num_seen = 0
        self._maps = {name: self._map(name, values) for name, values in self._values.items()}
        self._drawn = {
            name: {value: one for value, one in values.items() if value} for name, values in self._values.items()
        }
        classes = [one for values in self._drawn.values() for one in values.values()]
        self._overlays = {
            name: Overlay(cut, {value: class_colour(one, classes) for value, one in values.items()})
            for name, values in self._drawn.items()
        }
        self._probabilities: data.ProbabilityMap | None = None
        if options.probabilities:
            channels = task.output.channels
            names = structures if len(structures) == channels else structures[-channels:]
            path = inside(folder, f"{task.name}.ome.tif")
            self._probabilities = data.ProbabilityMap(path, cut.width, cut.height, names, mpp=cut.mpp)

    def _map(self, name: str, values: Mapping[int, str]) -> data.SlideMap:
        path, cut = inside(self._folder, name), self._cut
        path.parent.mkdir(exist_ok=True)
        words = {"downsample": cut.downsample, "slide": cut.path.name, "values": {str(n): v for n, v in values.items()}}
        return data.SlideMap(path, cut.width, cut.height, mpp=cut.mpp, description=words)

    def add(self, found: Tensor, means: Tensor, rows: Rows) -> None:
        """The next rows, of the columns that `rows` has: bool [C, h, w] or uint8 [1, h, w], and their probabilities."""
        values = found.to(torch.uint8) * (1 if self._is_classes else 255) * rows.seen
        seen = rows.seen.cpu().numpy()
        self._num_seen += int(seen.sum())
        for (name, file), part in zip(self._maps.items(), values.cpu().numpy(), strict=True):
            self._counts[name] += np.bincount(part[seen], minlength=256)
            whole = self._whole(part, rows)
            self._overlays[name].add(whole)
            with naming(self._folder / name):
                file.add(whole)
        if self._probabilities is not None:
            shares = (means * 255).round().to(torch.uint8).cpu().numpy()
            with naming(self._probabilities.path):
                self._probabilities.add(self._whole(shares, rows))

    def _whole(self, part: NDArray[np.uint8], rows: Rows) -> NDArray[np.uint8]:
        whole = np.zeros((*part.shape[:-1], self._cut.width), np.uint8)
        whole[..., rows.left : rows.left + part.shape[-1]] = part
        return whole

    def close(self, slide: NDArray[np.uint8]) -> JsonObject:
        """Write the files; `slide` is its thumbnail."""
        for name, file in self._maps.items():
            with naming(self._folder / name):
                file.close()
            self._overlays[name].save((self._folder / name).with_suffix(".png"), slide)
        words: JsonObject = {"outlines": f"{self._name}.geojson"}
        if self._probabilities is not None:
            with naming(self._probabilities.path):
                self._probabilities.close()
            words["probabilities"] = self._probabilities.path.name
        drawn = {self._folder / name: values for name, values in self._drawn.items()}
        cut, options = self._cut, self._options.outlines(self._cut.mpp)
        outlines = data.write_outlines(self._folder / words["outlines"], drawn, cut.downsample, cut.offset, options)
        if outlines.min_area > options.min_area:  # too many for viewers
            words["outlines_min_area"] = outlines.min_area * (cut.mpp or 1.0) ** 2
        return {**words, **self._words()}

    def discard(self) -> None:
        for file in self._maps.values():
            file.discard()
        if self._probabilities is not None:
            self._probabilities.discard()

    def _words(self) -> JsonObject:
        """The facts, as for images; fractions are of the pixels covered by tiles."""
        seen = max(self._num_seen, 1)
        if self._is_classes:
            ((name, values),) = self._values.items()
            return {"classes": name, "shares": {one: self._counts[name][n].item() / seen for n, one in values.items()}}
        masks = {name: {"mask": name, "foreground": self._counts[name][255].item() / seen} for name in self._values}
        if len(masks) == 1:
            return next(iter(masks.values()))
        return {
            entry_name(one, _FACTS, "_structure"): masks[name]
            for name, values in self._values.items()
            for one in values.values()
        }
