"""The index file: what it keeps, when it is believed, where it lies."""

import os
import shutil
from dataclasses import replace
from time import perf_counter

import numpy as np
import pytest
from helpers.slides import TILE, patch_tile, tissue_like, write_jpeg_with_tables, write_tiff

from fastmtl import data
from fastmtl.data.slides import index, scan
from fastmtl.data.slides import slide as slide_module
from fastmtl.data.slides.raster import levels_of
from fastmtl.data.slides.tissue_mask import TissueMask


@pytest.fixture
def no_scan(monkeypatch):
    """Opening must do with the index."""

    def fail(*_args):
        raise AssertionError("the slide was scanned")

    return lambda: monkeypatch.setattr(slide_module, "scan", fail)


def test_an_indexed_slide_opens_without_a_scan(tmp_path, no_scan):
    pixels = tissue_like()
    path = write_jpeg_with_tables(tmp_path / "slide.svs", pixels, "rgb")
    with data.open_slide(path) as slide:
        expected, tissue = slide.read_region(0, 0, 300, 210), slide.tissue
    stored = data.index_slide(path)
    assert (tmp_path / ".fastmtl" / "slide.svs.safetensors").exists()
    no_scan()
    with data.open_slide(path) as slide:
        assert (slide.mpp, slide.levels, slide.problems) == (0.5, stored.layout.levels, stored.layout.problems)
        np.testing.assert_array_equal(slide.read_region(0, 0, 300, 210), expected)
        np.testing.assert_array_equal(slide.tissue.mask, tissue.mask)


def test_everything_survives_storing(tmp_path):
    palette = np.random.default_rng(0).integers(0, 65536, (3, 256)).astype(np.uint16)
    grey = tissue_like()[..., 0]
    path = write_tiff(tmp_path / "s.tiff", grey, photometric="palette", colormap=palette, levels=2, compression="lzw")
    stored = data.index_slide(path)
    loaded = index.load_index(path)
    assert loaded is not None
    assert loaded.identity == stored.identity
    for name in ("reader", "vendor", "levels", "mpp", "magnification", "bounds", "problems"):
        assert getattr(loaded.layout, name) == getattr(stored.layout, name)
    for ours, theirs in zip(loaded.layout.rasters, stored.layout.rasters, strict=True):
        assert ours.encoding == theirs.encoding
        np.testing.assert_array_equal(ours.offsets, theirs.offsets)
        np.testing.assert_array_equal(ours.counts, theirs.counts)


def test_a_changed_slide_is_scanned_again(tmp_path):
    path = write_tiff(tmp_path / "slide.tiff", tissue_like(300, 210))
    data.index_slide(path)
    write_tiff(path, tissue_like(400, 210, seed=1))
    with data.open_slide(path) as slide:
        assert slide.levels[0].width == 400
        np.testing.assert_array_equal(slide.read_region(0, 0, 400, 210), tissue_like(400, 210, seed=1))
    assert data.index_slide(path).layout.levels[0].width == 400
    assert index.load_index(path) is not None


def test_a_change_that_keeps_size_and_time_is_seen(tmp_path):
    path = write_tiff(tmp_path / "slide.tiff", tissue_like())
    data.index_slide(path)
    before = path.stat()
    patch_tile(path, 0, lambda part: part.__setitem__(slice(0, 4), b"abcd"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert index.load_index(path) is None


def test_another_version_and_a_damaged_index_are_as_good_as_none(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "slide.tiff", tissue_like())
    data.index_slide(path)
    stored = tmp_path / ".fastmtl" / "slide.tiff.safetensors"
    sound = stored.read_bytes()
    for damaged in (b"", sound[:100], b"x" * 500, sound[:-50]):
        stored.write_bytes(damaged)
        assert index.load_index(path) is None
        with data.open_slide(path) as slide:
            assert slide.levels[0].width == 300
    stored.write_bytes(sound)
    assert index.load_index(path) is not None
    monkeypatch.setattr(index, "VERSION", index.VERSION + 1)
    assert index.load_index(path) is None


def test_an_index_folder_serves_slides_of_one_name_from_several_folders(tmp_path, no_scan):
    first = write_tiff(tmp_path / "slide.tiff", tissue_like(300, 210))
    (tmp_path / "b").mkdir()
    second = write_tiff(tmp_path / "b" / "slide.tiff", tissue_like(200, 100))
    kept = tmp_path / "kept"
    for path in (first, second):
        data.index_slide(path, index_folder=kept)
    assert len(list(kept.iterdir())) == 2
    assert not (tmp_path / ".fastmtl").exists()
    no_scan()
    assert [data.open_slide(path, index_folder=kept).levels[0].width for path in (first, second)] == [300, 200]


def test_a_moved_data_set_keeps_its_indexes(tmp_path, no_scan):
    (tmp_path / "a").mkdir()
    data.index_slide(write_tiff(tmp_path / "a" / "slide.tiff", tissue_like()))
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # keeps modification times
    no_scan()
    assert data.open_slide(tmp_path / "b" / "slide.tiff").levels[0].width == 300


def test_a_folder_that_cannot_be_written_to(tmp_path):
    path = write_tiff(tmp_path / "slide.tiff", tissue_like())
    (tmp_path / ".fastmtl").write_text("in the way")
    with pytest.raises(data.SlideError, match=r"cannot be written to .*; pass index_folder"):
        data.index_slide(path)


def test_damage_met_while_indexing_becomes_a_problem(tmp_path):
    path = write_tiff(tmp_path / "slide.tiff", tissue_like(), compression="jpeg")
    patch_tile(path, 7, lambda part: part.__setitem__(slice(100, None), bytes(len(part) - 100)))
    found = data.index_slide(path)
    assert "a tile cannot be read: tile at x=128, y=64 of level 0" in found.layout.problems[-1]
    assert found.tissue is not None


def test_nothing_is_done_twice(tmp_path, monkeypatch):
    from fastmtl.data.slides import indexing

    path, calls = write_tiff(tmp_path / "slide.tiff", tissue_like()), []
    monkeypatch.setattr(indexing, "scan", lambda *args: calls.append(1) or scan.scan(*args))
    for force in (False, False, True):
        data.index_slide(path, force=force)
    assert len(calls) == 2


def test_a_large_slide_opens_in_under_five_milliseconds(tmp_path):
    """100,000 pixels a side: 160,000 tiles."""
    path = write_tiff(tmp_path / "slide.tiff", tissue_like())
    small = data.index_slide(path)
    side, count = 400 * TILE, 400 * 400
    offsets, counts = np.arange(count, dtype=np.int64) * 20000, np.full(count, 20000)
    large = replace(small.layout.rasters[0], width=side, height=side, offsets=offsets, counts=counts)
    layout = replace(small.layout, rasters=(large,), levels=levels_of((large,)))
    tissue = TissueMask.of(np.ones((2048, 2048), bool), side, side)
    index.save_index(index.SlideIndex(small.identity, layout, tissue), path)

    def seconds() -> float:
        start = perf_counter()
        slide = data.open_slide(path)
        taken = perf_counter() - start
        assert slide.levels[0].width == side
        return taken

    assert min(seconds() for _ in range(10)) < 0.005
