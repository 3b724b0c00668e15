"""The loader of tile folders: shuffled, sharded, augmented, and resumable at any batch."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..protocols import Batch, Target
from . import order
from .augment import Augmentation
from .check import check_tiles
from .dataset import Problem, Tile
from .graph import Graph, GraphOptions
from .source import Feed, FileSource, Plan

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NO_LABEL = -100
"""Label of a sample without one: what torch's losses ignore by default."""


class TileReadError(UserError, RuntimeError):
    """A batch could not be read; `problems` lists the damaged files that were found in it."""

    def __init__(self, message: str, problems: Sequence[Problem]):
        super().__init__(message)
        self.problems = tuple(problems)


class TileLoader:
    """Batches of augmented tiles, read and decoded by DALI.

    Each `iter` yields what is left of the current epoch and moves on to the next. So leaving a loop early and iterating
    again continues, and `set_epoch` starts an epoch from its beginning. Images are resampled once, bilinearly and
    without a low-pass filter: store tiles no more than about twice as large as `size`. Pixels outside the tile become
    light grey (`graph.BACKGROUND`) in the image and 0 in the mask.

    Batches hold `images` float32 [B, 3, size, size], for a "mask" task uint8 [B, 1, size, size] of 0 and 1, for a
    "label" task int64 [B], and `present`. A missing mask is all 0, a missing label -100, and `present` is False there.

    Args:
        tiles: the data set.
        targets: task name -> `Target` or its kind; its order is that of the columns of `Batch.present`.
        size: output height and width, pixels.
        batch_size: samples a batch, on this rank.
        augmentation: see `Augmentation`; none by default.
        shuffle: a new order each epoch (training). With several ranks tiles are then repeated until all ranks have
            equally many; without it every tile comes exactly once, and ranks may differ by one tile.
        balanced: draw with replacement, each class equally often; needs labels and `shuffle`.
        seed: of order and augmentation, 0 .. 2**63 - 1.
        drop_last: leave out the last batch when it is not full.
        rank: this process among `world_size`.
        world_size: processes that share the data set.
        device: "cpu" or "gpu" (torch's current CUDA device): where decoding and augmentation run and batches lie.
        num_threads: CPU threads for decoding.
        prefetch: batches prepared ahead.
        mean: per-channel mean that is subtracted, RGB in 0..1.
        std: per-channel divisor.
        mask_threshold: mask values above it are foreground, 0..255.

    Raises:
        ValueError: an argument is out of range.
        TileReadError: while iterating; names the file. The position stays before the batch with the damaged file.
    """

    def __init__(
        self,
        tiles: Sequence[Tile],
        *,
        targets: Mapping[str, Target | str],
        size: int,
        batch_size: int,
        augmentation: Augmentation | None = None,
        shuffle: bool = False,
        balanced: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        device: Literal["cpu", "gpu"] = "cpu",
        num_threads: int = 2,
        prefetch: int = 2,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        mask_threshold: int = 127,
    ):
        self._tiles = tuple(tiles)
        self._targets = {name: target if isinstance(target, str) else target.kind for name, target in targets.items()}
        self._batch_size, self._seed, self._drop_last = batch_size, seed, drop_last
        self._shuffle, self._balanced = shuffle, balanced
        self._rank, self._world_size = rank, world_size
        augmentation = augmentation or Augmentation.none()
        with_mask = "mask" in self._targets.values()
        self._options = GraphOptions(
            size=size,
            batch_size=batch_size,
            with_colour=augmentation.changes_colour,
            with_mask=with_mask,
            mean=mean,
            std=std,
            mask_threshold=mask_threshold,
            device=device,
            num_threads=num_threads,
            prefetch=prefetch,
            fused=device == "cpu",
        )
        self._check()
        self._feed = Feed(FileSource(self._tiles), augmentation, seed=seed, size=size, with_mask=with_mask)
        self._graph: Graph | None = None
        self._graph_idle = False
        self._labels = torch.tensor([NO_LABEL if tile.label is None else tile.label for tile in self._tiles])
        has = {"mask": [tile.mask is not None for tile in tiles], "label": [tile.label is not None for tile in tiles]}
        self._present = torch.tensor([has[kind] for kind in self._targets.values()]).T.contiguous()
        self._epoch = self._batch = 0
        self._iteration = 0
        self._resumed = False

    def __len__(self) -> int:
        """Batches an epoch, on this rank."""
        tiles = len(range(self._rank, self._padded_length(), self._world_size))
        return tiles // self._batch_size if self._drop_last else -(-tiles // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        self._iteration += 1
        iteration = self._iteration
        if self._batch >= len(self) and not self._resumed:  # the last epoch's loop was left right after its last batch
            self._epoch, self._batch = self._epoch + 1, 0
        self._resumed = False
        first, plans = self._batch, self._plans()[self._batch :]
        self._start(plans)
        for number, plan in enumerate(plans):
            self._check_current(iteration)
            tensors = self._receive(plans, number)
            self._batch = first + number + 1
            yield self._assemble(plan, tensors)
        self._check_current(iteration)
        if plans and self._graph:
            self._graph.rewind()
            self._graph_idle = True
        self._epoch, self._batch = self._epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of `epoch`; an iteration under way ends with an error."""
        self._move(epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was handed out, and what it is a position in; JSON types only."""
        return {"epoch": self._epoch, "batch": self._batch, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken: the batches to come are those of the uninterrupted loader, bit for bit.

        Raises:
            ValueError: the state is from other tiles, another seed, batch size, world size or order.
        """
        for name, mine in self._identity().items():
            if state.get(name) != mine:
                raise ValueError(
                    f"the loader state was taken with {name}={state.get(name)!r}, this loader has {mine!r}: "
                    "its position means nothing here; resume with the same data and settings"
                )
        self._move(state["epoch"], state["batch"])
        self._resumed = True

    def close(self) -> None:
        """Free the pipeline with its threads and buffers; iterating again builds another."""
        self._iteration += 1
        self._graph = None

    def _move(self, epoch: int, batch: int) -> None:
        self._iteration += 1  # the iteration under way would go on from the old place
        self._epoch, self._batch, self._resumed = epoch, batch, False

    def _identity(self) -> dict[str, Any]:
        names = hashlib.sha256()
        for tile in self._tiles:
            names.update(f"{tile.id}\0{tile.label}\0{tile.mask is not None}\n".encode())
        return {
            "tiles": names.hexdigest()[:16],
            "seed": self._seed,
            "batch_size": self._batch_size,
            "world_size": self._world_size,
            "shuffle": self._shuffle,
            "balanced": self._balanced,
            "drop_last": self._drop_last,
        }

    def _padded_length(self) -> int:
        ranks = self._world_size if self._shuffle else 1
        return -(-len(self._tiles) // ranks) * ranks

    def _plans(self) -> list[Plan]:
        """This rank's batches of the current epoch."""
        if self._balanced:
            samples = order.balanced_order(self._labels.tolist(), seed=self._seed, epoch=self._epoch)
        else:
            samples = order.epoch_order(len(self._tiles), seed=self._seed, epoch=self._epoch, shuffle=self._shuffle)
        if self._shuffle:
            samples = order.wrapped(samples, self._world_size)
        repeats = order.repeats(samples)
        samples, repeats = (part[self._rank :: self._world_size] for part in (samples, repeats))
        starts = range(0, len(self) * self._batch_size, self._batch_size)
        return [Plan(samples[at : at + self._batch_size], repeats[at : at + self._batch_size]) for at in starts]

    def _start(self, plans: Sequence[Plan]) -> None:
        if plans:
            self._feed.start(self._epoch, plans)
            if self._graph is None or not self._graph_idle:  # one left in mid-pass still holds that pass's batches
                self._graph = Graph(self._feed, self._options)
            self._graph_idle = False

    def _receive(self, plans: Sequence[Plan], number: int) -> list[Tensor]:
        try:
            return self._graph.run() if self._graph else []
        except Exception as error:  # DALI raises RuntimeError, reading files OSError; neither names the sample
            due = plans[number : max(self._feed.num_fed, number + 1)]
            tiles = [self._tiles[index] for plan in due for index in dict.fromkeys(plan.samples.tolist())]
            problems = check_tiles(tiles)
            place = f"batch {self._batch} of epoch {self._epoch}"
            if problems:
                raise TileReadError(f"{place} cannot be read: {'; '.join(map(str, problems[:3]))}", problems) from error
            ids = ", ".join(tile.id for tile in tiles[: self._batch_size])
            raise TileReadError(f"{place} cannot be read: {_cause(error)}; its tiles: {ids}", ()) from error

    def _assemble(self, plan: Plan, tensors: list[Tensor]) -> Batch:
        images, *maps = tensors
        rows = torch.from_numpy(np.ascontiguousarray(plan.samples))
        labels = self._labels[rows].to(images.device)
        tiles = [self._tiles[index] for index in plan.samples.tolist()]
        return Batch(
            images=images,
            targets={name: maps[0] if kind == "mask" else labels for name, kind in self._targets.items()},
            present=self._present[rows].to(images.device),
            ids=[tile.id for tile in tiles],
            groups=[tile.group for tile in tiles],
        )

    def _check_current(self, iteration: int) -> None:
        if iteration != self._iteration:
            raise RuntimeError("this iteration was ended: by a newer one, close(), set_epoch() or load_state_dict()")

    def _check(self) -> None:
        options = self._options
        for name, value in (
            ("size", options.size),
            ("batch_size", self._batch_size),
            ("world_size", self._world_size),
            ("num_threads", options.num_threads),
            ("prefetch", options.prefetch),
        ):
            _require(value >= 1, f"`{name}` must be 1 or more; got {value}")
        _require(0 <= self._rank < self._world_size, f"`rank` must be 0 .. {self._world_size - 1}; got {self._rank}")
        _require(0 <= self._seed < 2**63, f"`seed` must be 0 .. 2**63 - 1; got {self._seed}")
        _require(min(options.std) > 0, f"`std` must be positive; got {options.std}")
        _require(options.device in ("cpu", "gpu"), f'`device` must be "cpu" or "gpu"; got {options.device!r}')
        _require(
            options.device == "cpu" or torch.cuda.is_available(),
            '`device` is "gpu" and torch sees no CUDA device; pass device="cpu"',
        )
        kinds = set(self._targets.values())
        _require(
            bool(kinds) and kinds <= {"mask", "label"},
            f'`targets` must map each task to "mask" or "label"; got {self._targets}',
        )
        _require(len(self._tiles) > 0, "`tiles` is empty")
        _require(len({tile.id for tile in self._tiles}) == len(self._tiles), "`tiles` has two tiles with the same id")
        _require(self._shuffle or not self._balanced, "`balanced` draws at random: it needs shuffle=True")
        _require(
            not self._balanced or all(tile.label is not None for tile in self._tiles),
            "`balanced` needs a label for every tile",
        )
        _require(
            len(self) > 0 or not self._drop_last,
            f"`drop_last` leaves no batch: {len(self._tiles)} tiles for batches of {self._batch_size}",
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _cause(error: Exception) -> str:
    """The line of a DALI error that says what went wrong: the one after "encountered:", else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    after = [line for previous, line in itertools.pairwise(lines) if previous == "encountered:"]
    return (after or lines or [type(error).__name__])[0]
