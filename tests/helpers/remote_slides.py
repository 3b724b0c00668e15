"""A slide that the tests of remote slides write, and its equality with the local one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastmtl import data
from fastmtl.data.slides.opened import forget_opened
from fastmtl.data.slides.remote import files
from helpers.slides import tissue_like, write_tiff

SIZE = (1300, 900)


def write_slide(folder: Path, name: str = "a.tiff", seed: int = 0, **options: Any) -> Path:
    return write_tiff(folder / name, tissue_like(*SIZE, seed), levels=3, **{"compression": "jpeg", **options})


def forget() -> None:
    """As another process, or a minute later."""
    files._infos.clear()
    forget_opened()


def same_slide(remote: Any, local: Path) -> None:
    with data.open_slide(remote) as slide, data.open_slide(local) as truth:
        assert (slide.levels, slide.mpp, slide.problems) == (truth.levels, truth.mpp, truth.problems)
        for level, (x, y) in enumerate([(1100, 700), (100, 0), (-20, 300)]):
            here, there = (one.read_region(x, y, 333, 222, level) for one in (truth, slide))
            np.testing.assert_array_equal(there, here)
        pieces = [one.encoded_tiles(data.Region(one.path, 500, 400, 300, 300)) for one in (truth, slide)]
        assert len(pieces[0]) == len(pieces[1]) > 9
        for one, other in zip(*pieces, strict=True):
            np.testing.assert_array_equal(one.data, other.data)
