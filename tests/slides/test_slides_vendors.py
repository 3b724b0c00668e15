"""Slides of Leica, Philips and Ventana, pixel for pixel against OpenSlide; those that are left to it."""

import numpy as np
import pytest
import tifffile
from helpers.slide_checks import describes_as_openslide, is_left_to_openslide, regions_equal_openslide
from helpers.slides import patch_tag, tissue_like
from helpers.vendor_slides import TILE, write_leica, write_philips, write_ventana

from fastmtl import data
from fastmtl.data.slides import index

openslide = pytest.importorskip("openslide")
PIXELS, SMALL = tissue_like(512, 384), tissue_like(120, 200, seed=3)


def leica(path, **options):
    return write_leica(path, PIXELS, SMALL, **options)


def philips(path, **options):
    return write_philips(path, PIXELS[:370, :500], SMALL, **options)


def ventana(path, **options):
    return write_ventana(path, PIXELS, SMALL, **options)


NATIVE = {
    "leica": (leica, {}),
    "leica at an odd place": (leica, {"offset": (41, 63)}),
    "philips": (philips, {}),
    "philips with gaps": (philips, {"missing": [(0, 0), (0, 9), (1, 0), (1, 5), (2, 1)]}),
    "ventana": (ventana, {}),
    "ventana beside the corner": (ventana, {"left": 128}),
    "ventana without areas": (ventana, {"areas": 0}),
}


@pytest.mark.parametrize("kind", NATIVE)
def test_regions_equal_openslide(tmp_path, kind):
    write, options = NATIVE[kind]
    path, rng = write(tmp_path / "slide.tiff", **options), np.random.default_rng(0)
    assert data.index_slide(path).layout.reader == "native"
    with data.open_slide(path) as slide, openslide.OpenSlide(path) as other:
        assert slide.vendor == kind.split()[0]
        describes_as_openslide(slide, other)
        whole = (0, 0, *other.dimensions)
        sides = ("x", "y", "width", "height")
        told = [int(other.properties.get(f"openslide.bounds-{side}", whole[at])) for at, side in enumerate(sides)]
        assert list(slide.bounds) == told
        assert all(level.downsample == round(level.downsample) for level in slide.levels)
        assert regions_equal_openslide(slide, other, rng, 12, 400) > 100_000


@pytest.mark.parametrize("kind", NATIVE)
def test_an_index_gives_the_same_slide(tmp_path, kind):
    write, options = NATIVE[kind]
    path = write(tmp_path / "slide.tiff", **options)
    with data.open_slide(path) as slide:
        expected = [slide.read_region(100, 100, 300, 300, level) for level in range(len(slide.levels))]
    stored = data.index_slide(path)
    loaded = index.load_index(path)
    assert loaded is not None
    assert loaded.layout.levels == stored.layout.levels
    with data.open_slide(path) as slide:
        for level, pixels in enumerate(expected):
            np.testing.assert_array_equal(slide.read_region(100, 100, 300, 300, level), pixels)


def test_tiles_of_a_placed_level_are_encoded_and_lie_where_their_pixels_do(tmp_path):
    path = leica(tmp_path / "a.scn")
    with data.open_slide(path) as slide:
        region = data.Region(path, 30, 50, 200, 200)
        pieces = slide.encoded_tiles(region)
        assert {(one.x % TILE, one.y % TILE) for one in pieces} == {(10, 10)}
        assert all(one.data is not None for one in pieces)
        corner = slide.stored_bytes([data.Region(path, 40, 60, 64, 64)])[0]
        with tifffile.TiffFile(path) as file:
            assert corner == file.pages[1].databytecounts[0]
        glass = slide.read_region(0, 0, 41, 61)
        assert (glass[:, :40] == 240).all()
        assert (glass[60, 40] != 240).any()


def test_a_damaged_tile_of_a_placed_level_is_named_by_its_place_on_the_glass(tmp_path):
    path = leica(tmp_path / "a.scn")
    with tifffile.TiffFile(path) as file:
        at = file.pages[2].dataoffsets[1]
    stored = bytearray(path.read_bytes())
    stored[at : at + 8] = b"overlaid"
    path.write_bytes(stored)
    with data.open_slide(path) as slide, pytest.raises(data.DamagedPieceError, match="no start marker") as found:
        slide.read_region(40 + 2 * TILE, 60, 20, 20, 1)
    assert found.value.coordinate == (40 + 2 * TILE, 60, 1)


def test_a_truncated_slide_says_so(tmp_path):
    path = philips(tmp_path / "a.tiff")
    patch_tag(path, 324, 2**40)
    with data.open_slide(path) as slide:
        assert "1 of 48 tiles of level 0 lie beyond its end" in slide.damage
        with pytest.raises(data.DamagedPieceError, match="beyond the end of the file"):
            slide.read_region(0, 0, 10, 10)


@pytest.mark.parametrize(
    ("write", "options", "changed", "size"),
    [
        (leica, {"change": lambda xml: xml.replace('dimension sizeX="256"', 'dimension sizeX="130"')}, b"", "256x192"),
        (philips, {"change": lambda xml: xml.replace("0.001000000", "0.000500000")}, b"", "256x192"),
        (philips, {"change": lambda xml: xml.replace("0.001000000", "0.002000000")}, b"", "256x192"),
        (ventana, {}, b"mag=05", "256x192"),
        (ventana, {"areas": 0}, b"mag=05", "256x192"),
    ],
)
def test_a_level_whose_page_has_another_scale_than_the_metadata_say_is_left_out(
    tmp_path, write, options, changed, size
):
    """OpenSlide shows it at the wrong place, or background where it should be."""
    path = write(tmp_path / "slide.tiff", **options)
    if changed:
        path.write_bytes(path.read_bytes().replace(b"mag=10", changed))
    with data.open_slide(path) as slide:
        assert [level.downsample for level in slide.levels] == ([1] if write is ventana else [1, 4])
        assert sum(f"a level of {size} is left out" in problem for problem in slide.problems) == 1


@pytest.mark.parametrize(
    ("write", "options", "reason"),
    [
        (leica, {"pyramids": 2}, "it has 2 pyramids"),
        (leica, {"light": "fluorescence"}, "it has 0 pyramids"),
        (leica, {"change": lambda xml: xml.replace('ifd="2"', 'ifd="99"')}, "its page 99 is absent"),
        (leica, {"change": lambda xml: xml.replace('offsetX="20000"', 'offsetX="soon"')}, "offsetX is 'soon'"),
        (philips, {"slides": 2}, "it holds 2 slides"),
        (philips, {"change": lambda xml: xml.replace("0.001000000", "nothing", 1)}, 'a scale is \'"nothing"'),
        (ventana, {"overlap": 4}, "its tiles overlap"),
        (ventana, {"areas": 2}, "it has 2 scanned areas"),
        (ventana, {"left": 129}, "do not begin at whole pixels"),
        (ventana, {"change": lambda xml: xml.replace('Width="64"', 'Width="32"')}, "tiles of another size"),
        (ventana, {"change": lambda xml: xml.replace('NumCols="8"', 'NumCols="2"')}, "name tiles that its area lacks"),
        (ventana, {"change": lambda xml: xml[:-20]}, "cannot be parsed"),
        (ventana, {"change": lambda xml: f"<!DOCTYPE a [<!ENTITY b 'c'>]>{xml}"}, "document type or entities"),
    ],
)
def test_what_is_left_to_openslide(tmp_path, write, options, reason):
    is_left_to_openslide(write(tmp_path / "slide.tiff", **options), reason)


def test_a_level_of_magnification_0_is_refused(tmp_path):
    path = ventana(tmp_path / "a.tiff", areas=0)
    path.write_bytes(path.read_bytes().replace(b"mag=10", b"mag=.0"))
    with pytest.raises(data.SlideError, match="level 1 the downsample inf: damaged metadata"):
        data.open_slide(path)


def test_a_level_larger_than_allowed_is_refused_unread(tmp_path):
    with pytest.raises(data.SlideError, match="declares 1000x2000 pixels"):
        data.open_slide(leica(tmp_path / "a.scn"), max_pixels=1_000_000)
