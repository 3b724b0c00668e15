"""`data.slide_statistics`: counted once beside a slide's index, anew when what it depends on changed."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.slides import patch_tile, tissue_like, write_tiff

from fastmtl import data
from fastmtl.data.stain import slide_statistics


@pytest.fixture
def slide(tmp_path):
    path = write_tiff(tmp_path / "one.tif", tissue_like())
    data.index_slide(path)
    return path


def _regions(slide, count=3):
    return [data.Region(slide, 64 * x, 64, 64, 64) for x in range(count)]


@pytest.fixture
def looks(monkeypatch):
    """The pictures that were opened."""
    seen = []

    def open_picture(picture):
        seen.append(picture)
        return data.open_picture(picture)

    monkeypatch.setattr(slide_statistics, "open_picture", open_picture)
    return seen


def test_a_slide_is_counted_once(slide, looks):
    regions = _regions(slide)
    first = data.slide_statistics(regions)
    assert looks == regions
    assert data.slide_statistics(regions) == first
    assert looks == regions
    alone = data.StainStatistics()
    for region in regions:
        alone.update(data.open_picture(region))
    assert first == alone


def _other_regions(slide):
    return _regions(slide, 2), "torchstain"


def _other_convention(slide):
    return _regions(slide), "cucim"


def _changed_slide(slide):
    write_tiff(slide, tissue_like(seed=1))
    data.index_slide(slide)
    return _regions(slide), "torchstain"


def _damaged_file(slide):
    (kept,) = slide.parent.glob(".fastmtl/*.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    return _regions(slide), "torchstain"


@pytest.mark.parametrize("change", [_other_regions, _other_convention, _changed_slide, _damaged_file])
def test_what_it_depends_on_is_noticed(slide, looks, change):
    data.slide_statistics(_regions(slide))
    regions, convention = change(slide)
    looks.clear()
    found = data.slide_statistics(regions, convention)
    assert looks == regions
    assert found == slide_statistics.collected([data.open_picture(region) for region in regions], convention)
    looks.clear()
    assert data.slide_statistics(regions, convention) == found
    assert not looks
    assert len(list(slide.parent.glob(".fastmtl/*.npz"))) == 1


def test_it_lies_where_the_index_does(tmp_path, looks):
    path = write_tiff(tmp_path / "one.tif", tissue_like())
    data.slide_statistics(_regions(path))
    assert [file.name for file in tmp_path.iterdir()] == ["one.tif"]  # nobody asked for files beside this slide
    data.use_index_folder(tmp_path / "kept")
    try:
        data.index_slide(path)
        data.slide_statistics(_regions(path))
    finally:
        data.use_index_folder(None)
    assert sorted(file.suffix for file in (tmp_path / "kept").iterdir()) == [".npz", ".safetensors"]


def test_a_place_that_cannot_be_written_to_costs_the_next_look_alone(slide, looks):
    (slide.parent / ".fastmtl" / f"{slide.name}.stain.npz").mkdir()
    found = data.slide_statistics(_regions(slide))
    assert data.slide_statistics(_regions(slide)) == found
    assert len(looks) == 6
    assert not list(slide.parent.glob(".fastmtl/.*"))


def test_a_tile_that_cannot_be_read_is_left_out(tmp_path):
    path = write_tiff(tmp_path / "one.tif", tissue_like(), compression="jpeg")
    whole = data.slide_statistics(_regions(path))
    patch_tile(path, 5, lambda tile: tile.__setitem__(slice(None), bytes(len(tile))))  # the first row has five
    found = data.slide_statistics(_regions(path))
    assert (whole.pixels, found.pixels) == (3 * 64 * 64, 2 * 64 * 64)


def test_image_files_may_differ_in_size(tmp_path):
    from PIL import Image

    pixels, files = tissue_like(), []
    for number, size in enumerate((64, 32)):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(np.ascontiguousarray(pixels[:size, :size])).save(files[-1])
    assert data.slide_statistics([*files, tmp_path / "none.png"]).pixels == 64 * 64 + 32 * 32


def test_what_a_failing_disk_left_out_is_not_kept(slide, looks, monkeypatch):
    regions = _regions(slide)
    healthy = slide_statistics.open_picture

    def failing(picture):
        if picture == regions[1]:
            raise OSError("the network went away")
        return healthy(picture)

    monkeypatch.setattr(slide_statistics, "open_picture", failing)
    assert data.slide_statistics(regions).pixels == 2 * 64 * 64
    monkeypatch.setattr(slide_statistics, "open_picture", healthy)
    assert data.slide_statistics(regions).pixels == 3 * 64 * 64
