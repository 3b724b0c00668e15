"""The style of the figures: fonts, colours for every kind of colour vision, and pages of a few columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from ..utils.optional_imports import require

# Okabe and Ito (2008), without yellow and with darker light blue, which thin lines on white need.
COLOURS = ("#0072b2", "#d55e00", "#00805c", "#b1528a", "#94700b", "#3d9fd6", "#000000", "#7a7a7a")
_DASHES = ("-", "--", ":", "-.")
_MOST = 9  # columns of one page, beside the first
_DPI = 200
_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
}


@contextmanager
def drawing() -> Iterator[ModuleType]:
    """matplotlib.figure, in the style of the figures; nothing global is changed.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", "drawing the figures", "bench")
    module = require("matplotlib.figure", "drawing the figures", "bench")
    with matplotlib.rc_context(_STYLE):
        yield module


def save(figure: Any, path: Path, heading: str) -> Path:
    """Write the figure as PNG, with its heading on as many lines as its width needs."""
    figure.suptitle(wrapped(heading, max(24, int(15 * figure.get_figwidth()))), fontsize=9)
    figure.savefig(path, dpi=_DPI)
    return path


def line_style(number: int) -> dict[str, object]:
    """Colour and dashes of the n-th line: 32 that differ, the first 8 in colour alone."""
    dash = _DASHES[number // len(COLOURS) % len(_DASHES)]
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": dash}


def wrapped(text: str, width: int = 18) -> str:
    """The text on lines of at most `width` characters."""
    return "\n".join(textwrap.wrap(text, width, break_long_words=True)) or text


def pages(items: Sequence[Any], most: int = _MOST) -> list[Sequence[Any]]:
    """The items in as few parts as fit, of nearly equal length.

    >>> [len(part) for part in pages(range(20), 9)]
    [7, 6, 7]
    """
    count = -(-len(items) // most)
    starts = [round(number * len(items) / count) for number in range(count + 1)] if count else [0]
    return [items[first:last] for first, last in pairwise(starts)]


def paged(out: Path, name: str, number: int, count: int) -> Path:
    """name.png, or name-1.png, name-2.png, ... of several pages."""
    return out / (f"{name}.png" if count == 1 else f"{name}-{number}.png")
