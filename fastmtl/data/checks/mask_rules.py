"""Rules for masks of one structure: a foreground above the threshold, soft edges, and no labels.

Each rule takes the values of a channel, uint8 [n] ascending, and the number of solid pixels of each, int64 [n]
(`MaskFacts`), and returns what is wrong, or "". Resampled masks have many values at their edges and few solid areas
between 0 and 255; labels and numbered objects fill areas.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...utils.words import listed
from .mask_facts import MANY_VALUES

MASK_THRESHOLD = 127
"""Pixels above it are foreground."""

_CHOSEN = 3  # at most so many values besides 0 were chosen by somebody; soft edges have more
_NUMBERED = 0.25  # above this share of the solid pixels, any number of values are labels: numbered objects

Values = NDArray[np.uint8]
Counts = NDArray[np.int64]


def too_small(values: Values, solid: Counts, none_shows: bool) -> str:
    """All chosen values are at or below the threshold; with `none_shows` (no mask is above it) soft ones too."""
    top = int(values.max(initial=0))
    chosen = np.count_nonzero(values) <= _CHOSEN or bool(solid[values > 0].any())
    if not 0 < top <= MASK_THRESHOLD or not (chosen or none_shows):
        return ""
    return f"holds no value above {top}, and pixels above {MASK_THRESHOLD} are foreground"


def too_faint(values: Values, solid: Counts) -> str:
    """Only soft values: an edge that just touches the tile counts as empty."""
    top = int(values.max(initial=0))
    if not 0 < top <= MASK_THRESHOLD:
        return ""
    return f"holds no value above {top} and counts as empty, as pixels above {MASK_THRESHOLD} are foreground"


def labels(values: Values, solid: Counts) -> str:
    """Areas below the threshold beside areas above it."""
    low = int(solid[(values > 0) & (values <= MASK_THRESHOLD)].sum())
    if not low or values.max(initial=0) <= MASK_THRESHOLD:
        return ""
    if len(values) > MANY_VALUES and low <= _NUMBERED * int(solid[values > 0].sum()):
        return ""
    areas = values_in_words(values[(values > 0) & (solid > 0)].tolist())
    return f"has areas of {areas}, and those up to {MASK_THRESHOLD} would be background: it holds labels or instances"


def stray(values: Values, solid: Counts) -> str:
    """A chosen small value without an area: a line, or single pixels."""
    small = (values > 0) & (values <= 10)
    if not 1 < np.count_nonzero(values) <= _CHOSEN or not small.any() or values.max() <= MASK_THRESHOLD:
        return ""
    if solid[small].any():
        return ""
    return f"holds {values_in_words(values.tolist())}, of which {values[small][-1]} counts as background"


def merged(values: Values, solid: Counts) -> str:
    """Areas of several values above the threshold: one structure, or several."""
    areas = values[(values > MASK_THRESHOLD) & (solid > 0)]
    if len(areas) < 2 or np.count_nonzero(values) > 2 * _CHOSEN:
        return ""
    return f"has areas of {values_in_words(areas.tolist())}, which all count as foreground"


def values_in_words(values: Sequence[int]) -> str:
    """The values, or their number and range.

    >>> values_in_words([0, 255])
    '0 and 255'
    """
    if len(values) > 6:
        return f"{len(values)} values from {values[0]} to {values[-1]}"
    return listed(list(map(str, values)))
