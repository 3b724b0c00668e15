"""Patches drawn at random from slides during training, a new set each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from ..dataset import ImageSource, Region, Tile
from . import order
from .samplers import slides_of

_STREAM = 0x7061746368


@runtime_checkable
class TileStream(Protocol):
    """Tiles that differ from epoch to epoch."""

    def __len__(self) -> int:
        """Number of tiles per epoch, the same for each epoch."""
        ...

    def tiles_of(self, epoch: int) -> Sequence[Tile]:
        """A pure function: the same tiles for the same epoch on every rank and after an interruption."""
        ...


@dataclass(frozen=True)
class RandomPatches:
    """`per_slide` patches of every slide in each epoch: grid positions, drawn and shifted at random.

    Args:
        tiles: the grid: tiles whose images are regions of slides, for example those with tissue. Masks and columns may
            be regions, or drawn by dataclasses with fields x and y in level-0 pixels; they are shifted alike.
        per_slide: patches per slide, drawn with replacement.
        shift: largest shift in both directions, level-0 pixels; half the grid's step reaches every position.
        seed: of the draws, 0 .. 2**63 - 1.
        balanced: draw each of a slide's labels equally often, or in between by `balance_power`.
        balance_power: as for `TileLoader`.

    Raises:
        ValueError: a tile is not a region of a slide, a number is out of range, or `balanced` lacks labels.
    """

    tiles: Sequence[Tile]
    per_slide: int
    shift: int
    seed: int = 0
    balanced: bool = False
    balance_power: float = 1.0

    def __post_init__(self) -> None:
        if not self.tiles or not all(isinstance(tile.image, Region) for tile in self.tiles):
            raise ValueError("`tiles` must be one or more regions of slides; image files cannot be shifted")
        if self.per_slide < 1 or self.shift < 0 or not 0 <= self.seed < 2**63:
            raise ValueError(
                "`per_slide` must be 1 or more, `shift` 0 or more, `seed` 0 .. 2**63 - 1; "
                f"got {self.per_slide}, {self.shift}, {self.seed}"
            )
        if self.balanced and any(tile.label is None for tile in self.tiles):
            raise ValueError("`balanced` needs a label for every tile")

    def __len__(self) -> int:
        return self.per_slide * len(set(slides_of(self.tiles)))

    def tiles_of(self, epoch: int) -> list[Tile]:
        """The patches of `epoch`, slide by slide."""
        drawn: list[Tile] = []
        for slide, members in enumerate(order.members(slides_of(self.tiles))):
            labels = [self.tiles[number].label if self.balanced else 0 for number in members.tolist()]
            bits = np.random.Philox(key=[self.seed, _STREAM], counter=[0, slide, 0, epoch])
            power = self.balance_power if self.balanced else 1.0
            chosen = members[order.drawn_by_class(labels, self.per_slide, bits, power)].tolist()
            shifts = bits.random_raw((self.per_slide, 2)) % np.uint64(2 * self.shift + 1)
            for number, (x, y) in zip(chosen, shifts.astype(np.int64) - self.shift, strict=True):
                drawn.append(_shifted(self.tiles[number], int(x), int(y), len(drawn)))
        return drawn


def _shifted(tile: Tile, x: int, y: int, number: int) -> Tile:
    values = {
        name: _moved(value, x, y, tile.id) if _is_picture(value) else value for name, value in tile.values.items()
    }
    return replace(
        tile,
        id=f"{tile.id}@{x:+d}{y:+d}#{number}",  # numbered: the same place may be drawn twice
        image=_moved(tile.image, x, y, tile.id),
        mask=None if tile.mask is None else _moved(tile.mask, x, y, tile.id),
        values=values,
    )


def _is_picture(value: object) -> bool:
    return isinstance(value, Region) or hasattr(value, "draw")


def _moved(picture: ImageSource, x: int, y: int, tile: str) -> ImageSource:
    if not is_dataclass(picture) or not hasattr(picture, "x") or not hasattr(picture, "y"):
        raise ValueError(f"{picture!r} of tile {tile} cannot be shifted with its image: it has no x and y")
    return replace(picture, x=picture.x + x, y=picture.y + y)
