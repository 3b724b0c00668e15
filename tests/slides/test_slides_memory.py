"""An epoch over more slides than are kept open: memory, open files and threads do not grow with the slides behind."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from helpers.memory import needs_statm, num_open_files, resident_bytes
from helpers.tiles import make_loader

from fastmtl import data

pytest.importorskip("nvidia.dali", reason="the loader needs DALI")

COPIES, SIDE, MEBIBYTE = 167, 128, 2**20


@pytest.mark.slow
@needs_statm
def test_an_epoch_of_many_slides_stays_flat(tmp_path: Path):
    """501 slides, each under a name of its own and opened anew, of which 128 are kept open; 2,004 regions."""
    root = data.generate_slides(tmp_path / "made", num_patients=3, slide_size=512)
    tiles = []
    for copy in range(COPIES):
        for made in sorted((root / "slides").glob("*.tiff")):
            slide = tmp_path / f"{copy:03d}-{made.name}"
            slide.symlink_to(made)
            regions = [data.Region(slide, x, y, SIDE, SIDE) for x in (0, 256) for y in (128, 384)]
            tiles += [data.Tile(f"{slide.name} {r.x} {r.y}", r, None, 0, slide.name) for r in regions]
    loader = make_loader(
        tiles, targets={"label": "label"}, size=SIDE, batch_size=12, shuffle=True, open_slides=3, prefetch=2
    )
    resident, files, threads = [], [], []
    for number, _ in enumerate(loader):
        if number % 4 == 3:
            resident.append(resident_bytes())
            files.append(num_open_files())
            threads.append(threading.active_count())
    loader.close()
    quarter = len(resident) // 4
    first, last = min(resident[:quarter]), min(resident[-quarter:])
    print(f"lowest resident memory, MiB: first quarter {first / MEBIBYTE:.0f}, last quarter {last / MEBIBYTE:.0f}")
    print(f"open files: {files}\nthreads: {threads}")
    assert last - first < 40 * MEBIBYTE
    assert files[-1] - files[0] < 128
    assert max(files[2 * quarter :]) <= max(files[: 2 * quarter]) + 3  # 128 slides are open, and those being read
    assert max(threads[quarter:]) <= max(threads[:quarter])
