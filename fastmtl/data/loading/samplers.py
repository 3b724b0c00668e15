"""The batches of an epoch, with tiles, order and rank; pure functions of (seed, epoch).

All ranks share one order: a batch of R ranks with B samples each is the next R B samples, of which each rank takes a
part. Another number of ranks with the same R B therefore takes the same batches.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..dataset import Region, Tile
from . import order
from .prefetch import Plan
from .set_order import drawn_before, set_samples
from .targets import NO_PARTNER
from .tile_sets import TileSets


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
    sets: TileSets | None = None

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
        _require(
            not (self.sets and (others or self.pairs or self.drop_last)),
            "`sets` cannot be combined with balanced, pairs, open_slides, per_slide or drop_last",
        )
        _require(not (self.pairs and others), "`pairs` cannot be combined with balanced, open_slides or per_slide")
        _require(
            not self.pairs or len(self.pairs) in (2, 3),
            f"`pairs` must be columns (case, position) or (case, position, apart); got {self.pairs!r}",
        )
        _require(not self.pairs or self.batch_size % 2 == 0, f"`pairs` needs an even batch_size; got {self.batch_size}")

    @property
    def by_slide(self) -> bool:
        return bool(self.open_slides or self.per_slide)

    @property
    def one_set(self) -> bool:
        """Whether each batch is of one of several data sets."""
        return self.sets is not None and not (self.shuffle and self.sets.mixed)

    @property
    def by_batch(self) -> bool:
        """Whether the order depends on the size of the batches of all ranks."""
        return bool(self.pairs or self.one_set)

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
            f"`drop_last` leaves no batch: {len(tiles)} tiles for batches of {self.global_batch}",
        )

    @property
    def global_batch(self) -> int:
        """Samples in a full batch of all ranks."""
        return self.batch_size * self.world_size

    def num_batches(self, tiles: Sequence[Tile], start: int = 0) -> int:
        """Batches of an epoch after its first `start` samples, on this rank; the same for every epoch."""
        if self.pairs or (self.one_set and not self.shuffle):
            return len(self.plans(tiles, 0, start))
        total = len(tiles)
        if self.one_set:  # all batches are full
            total = -(-total // self.global_batch) * self.global_batch
        if self.by_slide and self.per_slide:
            total = sum(min(len(one), self.per_slide) for one in order.members(slides_of(tiles)))
        full, rest = divmod(max(0, total - start), self.global_batch)
        return full + self._keeps(rest)

    def _keeps(self, number: int) -> bool:
        """Whether this rank keeps a batch of `number` samples on all ranks; without shuffling a rank may have none."""
        if number == self.global_batch:
            return True
        least = 1 + self._drops_single if self.shuffle else 1 + self.rank
        return number >= least and not self.drop_last

    @property
    def _drops_single(self) -> bool:
        return self.drop_single and self.batch_size > 1

    def plans(
        self, tiles: Sequence[Tile], epoch: int, start: int = 0, pieces: Sequence[Hashable | None] | None = None
    ) -> list[Plan]:
        """This rank's parts of the batches of `epoch` that follow the first `start` samples of all ranks; when drawn by
        slide, tiles that are equal in `pieces` follow each other."""
        if self.pairs:
            samples, sizes = self._paired(tiles, epoch)
        else:
            samples = self._samples(tiles, epoch, pieces)
            ends = [len(samples)]
            if self.sets is not None and not self.shuffle:  # the tiles of a set are together
                ends = [*(np.flatnonzero(np.diff(self.sets.numbers(tiles))) + 1).tolist(), *ends]
            sizes = _sizes(ends, start, self.global_batch)
        repeats, plans, end = order.repeats(samples), [], 0 if self.pairs else start
        slides = slides_of(tiles) if self.by_slide and self.world_size > 1 else None
        for size in sizes:
            begin, end = end, end + size
            if begin < start or not self._keeps(size):
                continue
            rows = self._rows_of_rank(size, None if slides is None else [slides[at] for at in samples[begin:end]])
            counted = rows < size
            rows = begin + rows % size
            partners = np.full(len(rows), NO_PARTNER)
            if self.pairs:
                partners = np.where(counted, np.arange(len(rows)) ^ 1, NO_PARTNER)
            plans.append(Plan(samples[rows], repeats[rows], partners, counted, end))
        return plans

    def ends_with_one(self, tiles: Sequence[Tile]) -> bool:
        """Whether the last batch of an epoch has a single sample, on this rank."""
        return len(self.plans(tiles, 0)[-1].samples) == 1

    def _rows_of_rank(self, size: int, slides: Sequence[str] | None) -> NDArray[np.int64]:
        """This rank's rows of a batch of `size` samples on all ranks. When shuffling, all ranks have the same number,
        and rows from `size` on fill them up. With `slides`, each rank reads as few of them as possible."""
        unit, ranks = (2 if self.pairs else 1), self.world_size
        if not self.shuffle:
            return np.arange(self.rank, size, ranks)
        each = max(-(-size // (unit * ranks)), 1 if self.pairs else 1 + self._drops_single)
        rows = np.arange(each * ranks * unit)
        if slides is not None:
            by_slide = np.argsort(np.array(slides)[rows % size], kind="stable")
            return rows[by_slide].reshape(ranks, each)[self.rank]
        return rows.reshape(each, ranks, unit)[:, self.rank].reshape(-1)

    def _samples(
        self, tiles: Sequence[Tile], epoch: int, pieces: Sequence[Hashable | None] | None
    ) -> NDArray[np.int64]:
        """The tiles of all ranks in order."""
        if self.by_slide:
            labels = self._labels(tiles) if self.balanced else None
            runs = order.slide_runs(
                slides_of(tiles),
                labels,
                seed=self.seed,
                epoch=epoch,
                per_slide=self.per_slide,
                power=self.balance_power,
                pieces=pieces,
            )
            return order.interleaved(runs, seed=self.seed, epoch=epoch, open_slides=self.open_slides or len(runs))
        if self.balanced:
            return order.balanced_order(self._labels(tiles), seed=self.seed, epoch=epoch, power=self.balance_power)
        if self.sets is not None and self.shuffle:
            numbers = self.sets.numbers(tiles)
            return set_samples(numbers, self.sets, seed=self.seed, epoch=epoch, batch=self.global_batch)
        return order.epoch_order(len(tiles), seed=self.seed, epoch=epoch, shuffle=self.shuffle)

    def with_shares(self, shares: Sequence[float], num_tiles: int, epoch: int) -> Self:
        """The same sampler with these shares of the sets from `epoch` on."""
        sets = self.sets
        _require(sets is not None and self.shuffle, "shares are of `sets` that are shuffled")
        assert sets is not None
        _require(
            len(shares) == len(sets.names) and all(0 < one <= 1 for one in shares),
            f"`shares` must be {len(sets.names)} numbers above 0 with sum 1; got {list(shares)}",
        )
        before = drawn_before(num_tiles, sets, seed=self.seed, epoch=epoch, batch=self.global_batch)
        return replace(self, sets=replace(sets, shares=tuple(shares), since=epoch, before=tuple(before.tolist())))

    def with_mixing(self, state: Mapping[str, Any] | None) -> Self:
        """The same sampler with the shares of a loader's state, if they had changed."""
        if state is None or self.sets is None:
            return self
        return replace(self, sets=self.sets.with_mixing(state))

    def _paired(self, tiles: Sequence[Tile], epoch: int) -> tuple[NDArray[np.int64], list[int]]:
        """The tiles of all ranks in order, pair after pair, and the size of each batch."""
        cases = self._cases(tiles)
        drawn = order.pair_batches(
            cases,
            self._owners(tiles, cases),
            seed=self.seed,
            epoch=epoch,
            pairs=self.global_batch // 2,
            drop_last=self.drop_last,
        )
        return np.concatenate([np.zeros((0, 2), np.int64), *drawn]).reshape(-1), [2 * len(batch) for batch in drawn]

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


def _sizes(ends: Sequence[int], start: int, most: int) -> list[int]:
    """The sizes of the batches after `start` samples: at most `most`, and each of `ends` ends one."""
    sizes = []
    for end in ends:
        sizes += [min(most, end - at) for at in range(start, end, most)]
        start = max(start, end)
    return sizes


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
