"""Errors of slides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError


class SlideError(UserError):
    """A slide cannot be read, or not this way; the message names the file, the reason and a remedy."""

    def __init__(self, slide: Path, reason: str):
        super().__init__(f"{slide}: {reason}")
        self.slide, self.reason = slide, reason

    def __reduce__(self) -> tuple:
        return type(self), (self.slide, self.reason)


class DamagedPieceError(SlideError):
    """A tile of a slide cannot be read.

    Attributes:
        slide: its file.
        coordinate: the tile's left and top edge in level-0 pixels, and its level.
        reason: what is wrong with it.
        what: both, in words, without the file.
    """

    def __init__(self, slide: Path, coordinate: tuple[int, int, int], reason: str):
        x, y, level = coordinate
        self.what = f"tile at x={x}, y={y} of level {level}: {reason}"
        super().__init__(slide, self.what)
        self.coordinate, self.reason = coordinate, reason

    def __reduce__(self) -> tuple:
        return type(self), (self.slide, self.coordinate, self.reason)


def in_words(damage: Sequence[DamagedPieceError]) -> tuple[str, ...]:
    """One line about the tiles of a slide that cannot be read; empty if there are none."""
    if not damage:
        return ()
    several = f"{len(damage)} tiles cannot be read, first" if len(damage) > 1 else "a tile cannot be read:"
    return (f"{several} {damage[0].what}",)
