"""The batches of an epoch, with tiles, order and rank; pure functions of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..dataset import Region, Tile
from . import order
from .prefetch import Plan
from .targets import NO_PARTNER


@dataclass(frozen=True)
class Sampler:
    """How epochs are composed; see `TileLoader` for the arguments."""

    batch_size: int
    seed: int
    shuffle: bool
    balanced: bool | str
    pairs: tuple[str, ...] | None
    open_slides: int
    per_slide: int
    drop_last: bool
    rank: int
    world_size: int
    drop_single: bool = False
    balance_power: float = 1.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "world_size"):
            _require(getattr(self, name) >= 1, f"`{name}` must be 1 or more; got {getattr(self, name)}")
        _require(0 <= self.balance_power <= 1, f"`balance_power` must be 0 .. 1; got {self.balance_power}")
        for name in ("open_slides", "per_slide"):
            _require(getattr(self, name) >= 0, f"`{name}` must be 0 or more; got {getattr(self, name)}")
        _require(0 <= self.rank < self.world_size, f"`rank` must be 0 .. {self.world_size - 1}; got {self.rank}")
        _require(0 <= self.seed < 2**63, f"`seed` must be 0 .. 2**63 - 1; got {self.seed}")
        for name in ("balanced", "pairs", "open_slides", "per_slide"):
            _require(self.shuffle or not getattr(self, name), f"`{name}` draws at random: it requires shuffle=True")
        others = self.balanced or self.by_slide
        _require(not (self.pairs and others), "`pairs` cannot be combined with balanced, open_slides or per_slide")
        _require(
            not self.pairs or len(self.pairs) in (2, 3),
            f"`pairs` must be columns (case, position) or (case, position, apart); got {self.pairs!r}",
        )
        _require(not self.pairs or self.batch_size % 2 == 0, f"`pairs` needs an even batch_size; got {self.batch_size}")

    @property
    def by_slide(self) -> bool:
        return bool(self.open_slides or self.per_slide)

    def check(self, tiles: Sequence[Tile]) -> None:
        """Raise ValueError for tiles that cannot be drawn this way."""
        _require(len(tiles) > 0, "`tiles` is empty")
        _require(len({tile.id for tile in tiles}) == len(tiles), "`tiles` has two tiles with the same id")
        _require(not self.balanced or None not in self._labels(tiles), "`balanced` needs a label for every tile")
        if self.pairs:
            cases = self._cases(tiles)
            _require(bool(cases), "`pairs` finds no case with two tiles")
            self._owners(tiles, cases)
        _require(
            self.num_batches(tiles) > 0 or not self.drop_last,
            f"`drop_last` leaves no batch: {len(tiles)} tiles for batches of {self.batch_size}",
        )

    def num_batches(self, tiles: Sequence[Tile]) -> int:
        """Batches per epoch, on this rank; the same for every epoch."""
        if self.pairs:
            return len(self.plans(tiles, 0))
        total = len(tiles)
        if self.by_slide and self.per_slide:
            total = sum(min(len(one), self.per_slide) for one in order.members(slides_of(tiles)))
        ranks = self.world_size if self.shuffle else 1
        mine = len(range(self.rank, -(-total // ranks) * ranks, self.world_size))
        full, rest = divmod(mine, self.batch_size)
        return full + (rest >= self._least)

    @property
    def _least(self) -> int:
        """The minimum number of samples of a last batch that is kept."""
        return self.batch_size if self.drop_last else 1 + self.drop_single

    def plans(self, tiles: Sequence[Tile], epoch: int) -> list[Plan]:
        """This rank's batches."""
        if self.pairs:
            return self._pair_plans(tiles, epoch)
        samples, repeats = self._samples(tiles, epoch)
        starts = range(0, len(samples), self.batch_size)
        parts = [slice(at, at + self.batch_size) for at in starts]
        plans = [Plan(samples[at], repeats[at], np.full(len(samples[at]), NO_PARTNER)) for at in parts]
        return [plan for plan in plans if len(plan.samples) >= min(self._least, self.batch_size)]

    def ends_with_one(self, tiles: Sequence[Tile]) -> bool:
        """Whether the last batch of an epoch has a single sample."""
        return len(self.plans(tiles, 0)[-1].samples) == 1

    def _samples(self, tiles: Sequence[Tile], epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """This rank's tiles in order, and the number of earlier occurrences of each on any rank."""
        if self.by_slide:
            labels = self._labels(tiles) if self.balanced else None
            runs = order.slide_runs(
                slides_of(tiles),
                labels,
                seed=self.seed,
                epoch=epoch,
                per_slide=self.per_slide,
                power=self.balance_power,
            )
            return order.interleaved(
                runs,
                seed=self.seed,
                epoch=epoch,
                open_slides=self.open_slides or len(runs),
                rank=self.rank,
                world_size=self.world_size,
            )
        if self.balanced:
            samples = order.balanced_order(self._labels(tiles), seed=self.seed, epoch=epoch, power=self.balance_power)
        else:
            samples = order.epoch_order(len(tiles), seed=self.seed, epoch=epoch, shuffle=self.shuffle)
        if self.shuffle:
            samples = order.wrapped(samples, self.world_size)
        repeats = order.repeats(samples)
        return samples[self.rank :: self.world_size], repeats[self.rank :: self.world_size]

    def _pair_plans(self, tiles: Sequence[Tile], epoch: int) -> list[Plan]:
        cases = self._cases(tiles)
        drawn = order.pair_batches(
            cases,
            self._owners(tiles, cases),
            seed=self.seed,
            epoch=epoch,
            pairs=self.batch_size // 2,
            world_size=self.world_size,
            drop_last=self.drop_last,
        )
        if not drawn:
            return []
        repeats = np.split(
            order.repeats(np.concatenate(drawn).reshape(-1)), np.cumsum([2 * len(b) for b in drawn])[:-1]
        )
        plans = []
        for batch, before in zip(drawn, repeats, strict=True):
            mine = batch[self.rank :: self.world_size].reshape(-1)
            before = before.reshape(-1, 2)[self.rank :: self.world_size].reshape(-1)
            plans.append(Plan(mine, before, np.arange(len(mine)) ^ 1))
        return plans

    def _labels(self, tiles: Sequence[Tile]) -> list:
        if isinstance(self.balanced, str):
            return [tile.values.get(self.balanced) for tile in tiles]
        return [tile.label for tile in tiles]

    def _cases(self, tiles: Sequence[Tile]) -> list[NDArray[np.int64]]:
        """The neighbours of each case of two tiles or more."""
        case, position, *_ = self.pairs or ("", "")
        return order.neighbours(_column(tiles, case), _column(tiles, position))

    def _owners(self, tiles: Sequence[Tile], cases: Sequence[NDArray[np.int64]]) -> list:
        """For each case the value that must be unique among the pairs of a batch: the case, or its third column."""
        name, _, *further = self.pairs or ("", "")
        if not further:
            return list(range(len(cases)))
        values, owners = _column(tiles, further[0]), []
        for case in cases:
            owner, *others = sorted({values[tile] for tile in case.flatten().tolist()}, key=str)
            scan = tiles[case[0, 0]].values[name]
            _require(
                not others,
                f"`pairs` keeps {further[0]!r} apart, and {name} {scan!r} has several of it, such as {owner!r} and "
                f"{others[0] if others else ''!r}",
            )
            owners.append(owner)
        return owners


def _column(tiles: Sequence[Tile], name: str) -> list:
    for tile in tiles:
        _require(tile.values.get(name) is not None, f"`pairs` needs {name!r} of every tile; {tile.id} has none")
    return [tile.values[name] for tile in tiles]


def slides_of(tiles: Sequence[Tile]) -> list[str]:
    """The slide of each tile, or the patient for image files."""
    return [str(tile.image.slide) if isinstance(tile.image, Region) else tile.group for tile in tiles]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
