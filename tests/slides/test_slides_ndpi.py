"""Hamamatsu's slides: parts of a JPEG between restart markers, pixel for pixel against OpenSlide."""

import numpy as np
import pytest
from helpers.ndpi_slides import starts_of, write_ndpi
from helpers.slide_checks import (
    batches_equal_regions,
    describes_as_openslide,
    is_left_to_openslide,
    regions_equal_openslide,
)
from helpers.slides import halved, tissue_like

from fastmtl import data
from fastmtl.data.slides import index, jpeg, wanted_tiles

openslide = pytest.importorskip("openslide")
PIXELS, MACRO = tissue_like(512, 384), tissue_like(100, 80, seed=2)


def coarser(pixels):
    return halved(halved(pixels))


LEVELS = [PIXELS, coarser(PIXELS), coarser(coarser(PIXELS))]


def write(folder, name="a.ndpi", levels=LEVELS, **options):
    return write_ndpi(folder / name, levels, MACRO, **options)


def equals_openslide(path, rng):
    with data.open_slide(path) as slide, openslide.OpenSlide(path) as other:
        assert (slide.vendor, slide.mpp, slide.magnification) == ("hamamatsu", 0.5, 20)
        assert slide.associated_names == ("macro",)
        describes_as_openslide(slide, other)
        assert regions_equal_openslide(slide, other, rng, 8, 300) > 100_000


@pytest.mark.parametrize("subsampling", [0, 1])
def test_regions_equal_openslide(tmp_path, subsampling):
    path, rng = write(tmp_path, subsampling=subsampling), np.random.default_rng(0)
    assert data.index_slide(path).layout.reader == "native"
    equals_openslide(path, rng)
    with data.open_slide(path) as slide:
        assert len(slide.levels) == 8  # of three that are stored
        (piece,) = slide.encoded_tiles(data.Region(path, 0, 0, 64, 384))
        assert (piece.width, piece.height) == (64, 384)  # one image of 48 parts


def test_a_name_and_a_last_level_of_another_kind(tmp_path):
    equals_openslide(write(tmp_path, name="a.tif", levels=LEVELS[:2], tile_last=True), np.random.default_rng(1))


def test_a_slide_beyond_4_gb(tmp_path):
    """Its offsets have 64 bits; the file is a hole of 5 GB and a slide."""
    path = write(tmp_path, name="a.any", before=5 * 2**30)
    assert path.stat().st_size > 2**32
    assert data.index_slide(path).layout.rasters[0].offsets.min() > 2**32
    equals_openslide(path, np.random.default_rng(2))


def test_other_focal_planes_are_left_out(tmp_path):
    path = write(tmp_path, planes=(0, 1200, -1200))
    assert len(data.index_slide(path).layout.levels) == 8
    equals_openslide(path, np.random.default_rng(3))


def test_a_stack_has_a_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(wanted_tiles, "_MOST_STACKED", 64 * 24)
    path = write(tmp_path)
    with data.open_slide(path) as slide:
        pieces = slide.encoded_tiles(data.Region(path, 0, 0, 64, 384))
        assert {piece.height for piece in pieces} == {24}
        assert sorted(piece.y for piece in pieces) == list(range(0, 384, 24))
    equals_openslide(path, np.random.default_rng(4))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_batches_are_what_read_region_gives(tmp_path, level):
    path = write(tmp_path)
    with data.open_slide(path) as slide:
        regions = data.grid(slide, 48, level=level, overlap=5)[:20]
        batches_equal_regions(slide, regions)


def test_everything_survives_storing(tmp_path):
    path = write(tmp_path)
    stored, loaded = data.index_slide(path), index.load_index(path)
    assert loaded is not None
    assert [one.encoding for one in loaded.layout.rasters] == [one.encoding for one in stored.layout.rasters]
    assert {one.encoding.scale for one in loaded.layout.rasters} == {1, 2, 4, 8}


def spoil(path, number, change):
    """Change the bytes of the part of level 0 with this number; returns the coordinate that an error must name."""
    stored = bytearray(path.read_bytes())
    begin = stored.index(b"\xff\xd8")
    starts = [begin + at for at in starts_of(bytes(stored[begin:]))]
    part = stored[starts[number] : starts[number + 1]]
    change(part)
    stored[starts[number] : starts[number + 1]] = part
    path.write_bytes(stored)
    return 64 * (number % 8), 8 * (number // 8), 0


def overwrite_marker(part):
    part[-2:] = b"xy"


def zero(part):
    part[2:-2] = bytes(len(part) - 4)


@pytest.mark.parametrize(
    ("change", "reason"), [(overwrite_marker, "no restart marker where one is listed"), (zero, "zero bytes inside")]
)
def test_a_damaged_part_is_named_and_its_neighbours_are_read(tmp_path, change, reason):
    path = write(tmp_path, levels=[np.random.default_rng(0).integers(0, 255, (384, 512, 3), np.uint8), LEVELS[1]])
    with data.open_slide(path) as slide:
        before = slide.read_region(64, 40, 64, 40)
    place = spoil(path, 27, change)
    with data.open_slide(path) as slide:
        for read in (slide.encoded_tiles, lambda one: slide.read_region(one.x, one.y, one.width, one.height)):
            with pytest.raises(data.DamagedPieceError, match=reason) as found:
                read(data.Region(path, 150, 0, 128, 128))
            assert found.value.coordinate == place
        np.testing.assert_array_equal(slide.read_region(64, 40, 64, 40), before)


def test_a_truncated_slide_says_so(tmp_path):
    """A page lies behind its level's JPEG: without the last pages, the others are read."""
    path = write(tmp_path)
    stored = path.read_bytes()
    path.write_bytes(stored[: stored.rindex(b"\xff\xd8") + 100])
    with data.open_slide(path) as slide:
        assert "pages after the first 3 lie beyond its end" in slide.damage
        assert slide.read_region(0, 0, 64, 64).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"subsampling": 2}, "its colours are stored in fewer rows"),
        ({"starts": False}, "the places of its restart markers are not listed"),
        ({"levels": [PIXELS[:, :500], LEVELS[1]]}, "do not cut it evenly"),
        ({"levels": [LEVELS[1], PIXELS, LEVELS[2]]}, "its levels are mixed"),
    ],
)
def test_what_is_left_to_openslide(tmp_path, options, reason):
    is_left_to_openslide(write(tmp_path, **options), reason)


def test_parts_of_a_jpeg_without_a_frame_are_refused():
    with pytest.raises(ValueError, match="no frame header"):
        jpeg.stacked(b"\xff\xd8\xff\xda\x00\x04ab", [b"\xff\xd0"])
