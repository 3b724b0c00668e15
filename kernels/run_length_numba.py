"""Run-length codes of binary masks: runs of ones as (start, length), starts counted from 1 along the flattened mask.

Both release the interpreter lock.
"""

from __future__ import annotations

import numpy as np

from .compiled_numba import compiled


@compiled
def fill_runs(runs, value, out):
    """Writes `value` into the runs. runs int64 [n, 2]; out uint8 [N], written where a run is.

    Returns the number of the first run that is not inside 1 .. N, or -1; the runs before it are drawn, those after it
    are not.
    """
    count = out.size
    for index in range(runs.shape[0]):
        start, length = runs[index, 0], runs[index, 1]
        # In another form start + length could overflow.
        if start < 1 or length < 1 or start > count or length > count - start + 1:
            return index
        for at in range(start - 1, start - 1 + length):
            out[at] = value
    return -1


@compiled
def find_runs(mask):
    """The runs of nonzero values: int64 [n, 2]. mask uint8 [N]."""
    count = 0
    before = False
    for at in range(mask.size):
        inside = mask[at] != 0
        if inside and not before:
            count += 1
        before = inside
    runs = np.empty((count, 2), np.int64)
    index, start = 0, -1
    for at in range(mask.size + 1):
        inside = at < mask.size and mask[at] != 0
        if inside and start < 0:
            start = at
        elif not inside and start >= 0:
            runs[index, 0], runs[index, 1] = start + 1, at - start
            index += 1
            start = -1
    return runs
