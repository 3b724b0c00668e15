"""Masks as run-length codes: "start length start length ...", starts counted from 1, as in competitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..sizes import MAX_PIXELS, check_pixels

Order = Literal["row", "column"]


@dataclass(frozen=True)
class RunLengths:
    """A mask as runs of foreground; a `Drawn`.

    Attributes:
        text: "start length ..."; empty text is an empty mask.
        height: of the mask, pixels.
        width: likewise.
        order: whether pixels are counted along rows ("row") or down columns ("column").
    """

    text: str
    height: int
    width: int
    order: Order = "row"

    def draw(self) -> NDArray[np.uint8]:
        """uint8 [height, width], 255 in the runs; ValueError as `decode_runs`."""
        return decode_runs(self.text, self.height, self.width, self.order) * np.uint8(255)


def decode_runs(
    text: str, height: int, width: int, order: Order = "row", *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """The mask uint8 [height, width] of 0 and 1 that `text` encodes.

    Raises:
        ValueError: not whole numbers, an odd count of them, a run that is not inside the mask, or a mask of more than
            `max_pixels`.

    >>> decode_runs("1 2 6 1", 2, 3)
    array([[1, 1, 0],
           [0, 0, 1]], dtype=uint8)
    """
    from ...kernels.run_length_numba import fill_runs

    _check_order(order)
    if height < 1 or width < 1:
        raise ValueError(f"`height` and `width` must be positive; got {height}x{width}")
    check_pixels(width, height, max_pixels=max_pixels)
    try:
        numbers = np.array([int(word) for word in text.split()], dtype=np.int64)
    except (ValueError, OverflowError):
        wrong = next((word for word in text.split() if not _is_count(word)), text)
        raise ValueError(f"a run-length code holds whole numbers; got {wrong[:40]!r}") from None
    if len(numbers) % 2:
        raise ValueError(f"a run-length code holds pairs of start and length; got {len(numbers)} numbers")
    runs = numbers.reshape(-1, 2)
    flat = np.zeros(height * width, np.uint8)
    bad = fill_runs(_apart(runs, flat.size), np.uint8(1), flat)
    if bad >= 0:
        start, length = runs[bad].tolist()
        raise ValueError(
            f"run {bad + 1} of the code (start {start}, length {length}) is not inside a mask of {height} rows and "
            f"{width} columns (pixels 1 .. {height * width}); are height and width the image's?"
        )
    return flat.reshape(height, width) if order == "row" else np.ascontiguousarray(flat.reshape(width, height).T)


def _apart(runs: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Runs [n, 2] without the parts covered by earlier ones, because filling overlaps many times would take minutes.
    Unchanged if one is outside the mask."""
    start, length = runs.T
    if not ((start >= 1) & (length >= 1) & (start <= size) & (length <= size)).all():
        return runs
    start, length = runs[np.argsort(start, kind="stable")].T
    ends = start + length
    first = np.maximum(start, np.concatenate([[1], np.maximum.accumulate(ends)[:-1]])) if len(runs) else start
    return np.stack([first, ends - first], axis=1)[ends > first]


def encode_runs(mask: NDArray, order: Order = "row") -> str:
    """The run-length code of the nonzero pixels of `mask` [height, width].

    >>> encode_runs(np.array([[1, 1, 0], [0, 0, 1]]))
    '1 2 6 1'
    >>> encode_runs(np.array([[1, 1, 0], [0, 0, 1]]), "column")
    '1 1 3 1 6 1'
    """
    from ...kernels.run_length_numba import find_runs

    _check_order(order)
    if mask.ndim != 2:
        raise ValueError(f"`mask` must be [height, width]; got {list(mask.shape)}")
    flat = np.ascontiguousarray(np.ravel(mask != 0, order="C" if order == "row" else "F")).view(np.uint8)
    return " ".join(map(str, find_runs(flat).ravel().tolist()))


def _check_order(order: str) -> None:
    if order not in ("row", "column"):
        raise ValueError(f'`order` must be "row" or "column"; got {order!r}')


def _is_count(word: str) -> bool:
    return word.isascii() and word.lstrip("+-").isdigit() and len(word) < 19
