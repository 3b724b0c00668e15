"""An epoch over more slides than are kept open: neither memory nor open files grow with the slides behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from helpers.memory import needs_statm, resident_bytes
from helpers.tiles import make_loader

from fastmtl import data

pytest.importorskip("nvidia.dali", reason="the loader needs DALI")

COPIES, SIDE, MEBIBYTE = 50, 128, 2**20


@pytest.mark.slow
@needs_statm
def test_an_epoch_of_many_slides_stays_flat(tmp_path: Path):
    """150 slides, of which 128 are kept open, 2,400 regions, 470 MB of batches."""
    root = data.generate_slides(tmp_path / "made", num_patients=3, slide_size=512)
    tiles = []
    for copy in range(COPIES):
        for made in sorted((root / "slides").glob("*.tiff")):
            slide = tmp_path / f"{copy:02d}-{made.name}"
            shutil.copy(made, slide)
            places = range(0, 512, SIDE)
            regions = [data.Region(slide, x, y, SIDE, SIDE) for x in places for y in places]
            tiles += [data.Tile(f"{slide.name} {r.x} {r.y}", r, None, 0, slide.name) for r in regions]
    loader = make_loader(
        tiles, targets={"label": "label"}, size=SIDE, batch_size=16, shuffle=True, open_slides=4, prefetch=2
    )
    resident, files = [], []
    for number, _ in enumerate(loader):
        if number % 5 == 4:
            resident.append(resident_bytes())
            files.append(len(os.listdir("/proc/self/fd")))
    loader.close()
    quarter = len(resident) // 4
    first, last = min(resident[:quarter]), min(resident[-quarter:])
    print(f"lowest resident memory, MiB: first quarter {first / MEBIBYTE:.0f}, last quarter {last / MEBIBYTE:.0f}")
    assert last - first < 40 * MEBIBYTE
    assert files[-1] - files[0] < 128
