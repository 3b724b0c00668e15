"""Tiles as stored that regions beside each other share: read once, within a number of bytes, never after a change."""

from __future__ import annotations

import os

import numpy as np
import pytest

from fastmtl import data
from fastmtl.data.slides.errors import SlideError
from fastmtl.data.slides.open_files import OpenFile
from fastmtl.data.slides.raster import Encoding, Raster
from fastmtl.data.slides.recent_tiles import RecentTiles
from fastmtl.data.slides.wanted_tiles import Wanted


def _raster():
    return Raster(40, 10, 10, 10, Encoding("jpeg"), np.zeros(4, np.int64), np.ones(4, np.int64))


def _wanted(*tiles):
    return [Wanted(tile, (10 * tile, 0, 10, 10), 0, 1) for tile in tiles]


class _Reads:
    """Tile n of n + 1 bytes; notes which were read."""

    def __init__(self):
        self.tiles = []

    def __call__(self, missing):
        for item in missing:
            self.tiles.append(item.tile)
            if item.tile == 9:
                raise ValueError("damaged")
            yield item, np.full(item.tile + 1, item.tile, np.uint8)


def test_only_tiles_that_are_not_kept_are_read():
    recent, raster, reads = RecentTiles(100), _raster(), _Reads()
    for tiles in ((0, 1), (1, 2), (0, 2)):
        found = {item.tile: stream for item, stream in recent.read(raster, _wanted(*tiles), reads)}
        assert {tile: stream.tolist() for tile, stream in found.items()} == {n: [n] * (n + 1) for n in tiles}
    assert reads.tiles == [0, 1, 2]
    recent.read(_raster(), _wanted(0), reads)
    assert reads.tiles == [0, 1, 2, 0], "another raster's tile"


def test_the_order_does_not_depend_on_what_is_kept():
    """Where tiles overlap, a later one lies over an earlier one."""
    recent, raster, reads = RecentTiles(100), _raster(), _Reads()
    for _ in range(2):
        recent.read(raster, _wanted(2), reads)
        assert [item.tile for item, _ in recent.read(raster, _wanted(1, 2, 0), reads)] == [1, 2, 0]


def test_what_was_used_longest_ago_is_forgotten_and_large_tiles_are_not_kept():
    recent, raster, reads = RecentTiles(6), _raster(), _Reads()
    for tiles in ((0,), (1,), (0,), (3,), (0,), (1,), (8,), (8,)):
        recent.read(raster, _wanted(*tiles), reads)
    assert reads.tiles == [0, 1, 3, 1, 8, 8]


def test_a_damaged_tile_is_read_again_and_those_before_it_are_kept():
    recent, raster, reads = RecentTiles(100), _raster(), _Reads()
    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"):
            recent.read(raster, _wanted(0, 9), reads)
    assert reads.tiles == [0, 9, 9]


@pytest.fixture
def slide(tmp_path):
    root = data.generate(tmp_path / "colon", num_patients=3, tiles_per_patient=1, num_slides=1)
    return data.open_slide(next((root / "slides").glob("*.tiff")))


def test_regions_beside_each_other_read_a_tile_once(slide, monkeypatch):
    read, original = [], OpenFile.read_into
    monkeypatch.setattr(OpenFile, "read_into", lambda *args: read.append(args[2]) or original(*args))
    first, again = ([one.data for one in slide.encoded_tiles(data.Region(slide.path, 0, 0, 300, 100))] for _ in "ab")
    assert len(read) == 1
    assert [one.tobytes() for one in first] == [one.tobytes() for one in again]
    slide.encoded_tiles(data.Region(slide.path, 100, 0, 300, 100))
    assert len(read) == 1


def test_a_changed_file_is_refused_although_its_tiles_are_kept(slide):
    region = data.Region(slide.path, 0, 0, 100, 100)
    slide.encoded_tiles(region)
    os.utime(slide.path, ns=(1, 1))
    with pytest.raises(SlideError, match="changed since it was opened"):
        slide.encoded_tiles(region)
