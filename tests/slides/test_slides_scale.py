"""Micrometres per pixel as files say them: where they come from, decimal commas, units; and what a manifest says."""

import numpy as np
import pytest
import tifffile
from helpers.slides import TILE, tissue_like, write_tiff

from fastmtl import data
from fastmtl.cli import main
from fastmtl.data.slides.scale import number

PIXELS = tissue_like(300, 210)
TILED = {"photometric": "rgb", "tile": (TILE, TILE), "compression": "deflate"}
NO_TAGS = {"resolution": (1, 1), "resolutionunit": "NONE"}


def aperio(path, words):
    return write_tiff(path, PIXELS, description=f"Aperio Image Library v1\n300x210 (64x64)|{words}", **NO_TAGS)


@pytest.mark.parametrize(
    ("words", "mpp", "magnification"),
    [
        ("AppMag = 20|MPP = 0.4990", 0.499, 20),
        ("AppMag = 20|MPP = 0,4990", 0.499, 20),
        ("AppMag = 10,0|MPP = 1,000000", 1.0, 10),
        ("MPP=0,25|AppMag=40x", 0.25, 40),
        ("AppMag = 40|MPP = 2,5e-1|Left = 3,5", 0.25, 40),
    ],
)
def test_aperio_writes_decimal_points_and_commas(tmp_path, words, mpp, magnification):
    openslide = pytest.importorskip("openslide")
    path = aperio(tmp_path / "a.svs", words)
    with data.open_slide(path) as slide, openslide.OpenSlide(path) as other:
        assert (slide.mpp, slide.mpp_source, slide.magnification) == (mpp, "description", magnification)
        assert float(other.properties["openslide.mpp-x"]) == mpp
        assert not slide.problems
        assert not slide.why_no_mpp


@pytest.mark.parametrize("text", ["1.000,5", "1,000.5", "0,2,5", "about 0.25", "nan", "inf", "0_25", "--1", ""])
def test_what_is_no_plain_number_is_not_guessed_at(tmp_path, text):
    assert number(text) is None
    with data.open_slide(aperio(tmp_path / "a.svs", f"AppMag = 20|MPP = {text}")) as slide:
        assert (slide.mpp, slide.mpp_source) == (None, "")
        assert f"the description's MPP is {text!r}, which is no number" in slide.problems[0]
        assert slide.why_no_mpp == slide.problems[-1]


OME_UNITS = {
    ("0.5", None): 0.5, ("0,5", None): 0.5, ("500", "nm"): 0.5, ("5000", "Å"): 0.5, ("5000", "\u212b"): 0.5,
    ("0.0005", "mm"): 0.5, ("5e-5", "cm"): 0.5, ("5e-7", "m"): 0.5, ("0.5", "\u03bcm"): 0.5, ("0.5", "\u00b5m"): 0.5,
    ("0.0000196850393", "in"): 0.5, ("0.5", "pixel"): None, ("0.5", ""): None, ("0.5", "reference frame"): None,
    ("1.000,5", None): None,
}  # fmt: skip


@pytest.mark.parametrize(("text", "unit"), OME_UNITS)
def test_units_of_ome(tmp_path, text, unit):
    told = "" if unit is None else f'PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"'
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0" Name="scan"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="300" '
        f'SizeY="210" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="{text}" PhysicalSizeY="{text}" {told}>'
        '<Channel ID="Channel:0" SamplesPerPixel="3"/><TiffData/></Pixels></Image></OME>'
    )
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, PIXELS, metadata=None, description=xml.encode(), **TILED)
    with data.open_slide(path) as slide:
        expected = OME_UNITS[text, unit]
        assert slide.mpp == (None if expected is None else pytest.approx(expected))
        assert slide.mpp_source == ("OME" if expected else "")
        assert expected is not None or "OME's PhysicalSizeX is" in slide.problems[0]


def test_the_scale_is_that_of_the_picture_that_is_read(tmp_path):
    sizes = {"PhysicalSizeX": 8.0, "PhysicalSizeY": 8.0}, {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for pixels, name, size in zip((PIXELS[:80], PIXELS), ("macro", "scan"), sizes, strict=True):
            file.write(pixels, metadata={"axes": "YXS", "Name": name, **size}, **TILED)
    with data.open_slide(path) as slide:
        assert slide.mpp == 0.25


@pytest.mark.parametrize(
    ("unit", "per_unit", "mpp"),
    [("micron", 2, 0.5), ("um", 2, 0.5), ("\\u00B5m", 2, 0.5), ("mm", 2000, 0.5), ("pixel", 2, None), ("", 2, None)],
)
def test_units_of_imagej(tmp_path, unit, per_unit, mpp):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, imagej=True, resolution=(per_unit, per_unit), metadata={"unit": unit, "axes": "YXS"})
    with data.open_slide(path) as slide:
        assert (slide.mpp, slide.mpp_source) == (mpp, "ImageJ" if mpp else "")
        assert mpp or "2 x 2, have no unit; pass mpp" in slide.why_no_mpp


def test_resolution_tags_and_what_is_given(tmp_path):
    path = write_tiff(tmp_path / "a.tif", PIXELS)
    with data.open_slide(path) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.5, "resolution tags")
    with data.open_slide(path, mpp=0.52) as slide:
        assert (slide.mpp, slide.mpp_source, slide.problems) == (0.52, "given", ())
    with data.open_slide(path, mpp=0.25) as slide:
        assert "0.25 micrometres per pixel were given, and the slide says 0.5 (resolution tags)" in slide.problems[0]
    path = write_tiff(tmp_path / "b.tif", PIXELS, resolution=(20000, 20000), resolutionunit="NONE")
    with data.open_slide(path) as slide:
        assert (slide.mpp, slide.mpp_source) == (None, "")
        assert "20000 x 20000, have no unit" in slide.why_no_mpp
    path = write_tiff(tmp_path / "c.tif", PIXELS, resolution=(20000, 19000))
    with data.open_slide(path) as slide:
        assert "not square: 0.5 x 0.5263" in slide.problems[0]


@pytest.fixture
def folder(tmp_path):
    """s.tif says nothing of its scale, t.tif 0.5."""
    write_tiff(tmp_path / "s.tif", tissue_like(512, 512), **NO_TAGS)
    write_tiff(tmp_path / "t.tif", tissue_like(512, 512))
    return tmp_path


def read(folder, text, mpp=0.5):
    (folder / "m.csv").write_text(text)
    return data.read_manifest(folder / "m.csv", data.ManifestOptions(grid=data.GridOptions(128, mpp, 0, 0.0)))


def test_a_manifest_gives_slides_their_scale(folder):
    dataset = read(folder, "slide,mpp\ns.tif,0.25\nt.tif,\n")
    sizes = {(tile.image.slide.name, tile.image.width) for tile in dataset.tiles}
    assert sizes == {("s.tif", 256), ("t.tif", 128)}
    assert dataset.problems == ()
    (problem,) = read(folder, "slide,mpp\ns.tif,0.25\nt.tif,0.25\n").problems
    assert problem.path.name == "t.tif"
    assert "0.25 micrometres per pixel were given, and the slide says 0.5" in problem.reason


def test_regions_told_by_mpp_know_what_the_row_of_their_slide_says(folder):
    text = "id,slide,x,y,width,height,mpp\na,s.tif,0,0,100,50,0.5\nb,s.tif,,,,,0.25\n"
    region = next(tile.image for tile in read(folder, text).tiles if tile.id == "a")
    assert (region.width, region.height, region.level) == (200, 100, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slide,mpp\ns.tif,abc\n", "line 2: mpp must be a number above 0; got 'abc'"),
        ('slide,mpp\ns.tif,"0,25"\n', "line 2: .*a decimal comma. write a point"),
        ("slide,mpp\ns.tif,0.25\nt.tif,0\n", "line 3: mpp must be a number above 0"),
        ("slide,mpp\ns.tif,nan\n", "line 2: mpp must be"),
        ("slide,mpp\ns.tif,400\n", "line 2: mpp must be 0.05 to 40"),
        ("slide,mpp,label\ns.tif,0.25,a\ns.tif,0.5,b\n", "line 3: mpp is 0.5, and another row of s.tif says 0.25"),
        ("slide\ns.tif\n", "line 2: .*s.tif says no mpp.*a manifest's column mpp"),
        ("slide,x,y,width,height,mpp\ns.tif,0,0,9,9,0.5\n", "line 2: .*says no mpp.*a manifest's column mpp"),
    ],
)
def test_a_scale_that_is_none_names_line_and_column(folder, text, words):
    with pytest.raises(ValueError, match=words):
        read(folder, text)


def test_cells_that_mean_nothing_where_they_stand_are_told(folder):
    tifffile.imwrite(folder / "i.tif", PIXELS, photometric="rgb")
    problems = read(folder, "image,slide,mpp,level\ni.tif,,0.5,\n,s.tif,0.5,1\n").problems
    assert [problem.reason.split(" is for ")[0] for problem in problems] == ["column 'mpp'", "column 'level'"]


def test_what_is_set_aside_of_a_slide_reaches_the_data_set_once(folder):
    with tifffile.TiffWriter(folder / "u.tif") as file:
        for side in (128, 512):
            file.write(tissue_like(side, side), metadata=None, **TILED)
    for rows in ("slide,label\nu.tif,a\n", "slide,x,y,width,height\nu.tif,0,0,9,9\nu.tif,9,9,9,9\n"):
        (problem,) = read(folder, rows, mpp=0.0).problems
        assert problem.path.name == "u.tif"
        assert "is set aside" in problem.reason


def test_predictions_are_cut_by_the_scale_of_the_manifest(folder):
    (folder / "m.csv").write_text("slide,mpp\ns.tif,0.25\nt.tif,\n")
    found = data.find_slides(folder / "m.csv")
    assert found.mpp == {"s.tif": 0.25}
    grid = data.GridOptions(128, 0.5, 0, 0.0)
    cut = data.cut_slide(found.slides["s.tif"], "s.tif", grid, found.mpp["s.tif"])
    assert (len(cut.tiles), cut.downsample, cut.mpp, cut.mpp_source) == (4, 2.0, 0.5, "given")
    with pytest.raises(data.SlideError, match="a manifest's column mpp"):
        data.cut_slide(found.slides["s.tif"], "s.tif", grid)


def cut_short(path):
    """The end of the pixels is gone, all headers are there."""
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].offset < min(file.pages[0].dataoffsets)
    stored = path.read_bytes()
    path.write_bytes(stored[: len(stored) * 2 // 3])


def test_a_truncated_slide_is_among_the_damaged_everywhere(folder, capsys):
    cut_short(folder / "t.tif")
    dataset = read(folder, "slide,label,mpp\ns.tif,a,0.5\nt.tif,b,\n")
    assert [problem.path.name for problem in data.check_tiles(dataset.tiles)] == ["t.tif"]
    with pytest.raises(data.DamagedTilesError, match=r"t\.tif: truncated: \d+ of 64 tiles of level 0"):
        data.usable_tiles(dataset)
    kept, problems = data.usable_tiles(dataset, "skip", max_damaged=0.1)
    assert {tile.image.slide.name for tile in kept.tiles} == {"s.tif"}
    assert "truncated" in problems[0].reason
    with pytest.raises(data.SlideError, match="truncated"):
        data.cut_slide(folder / "t.tif", "t.tif", data.GridOptions(128))
    assert main(["data", "check", str(folder / "m.csv"), "--set", "data.mpp=0"]) == 1
    assert "truncated" in capsys.readouterr().out


def test_nothing_of_a_scale_is_lost_in_an_index(folder):
    for path in (folder / "s.tif", folder / "t.tif"):
        cut_short(path)
        stored = data.index_slide(path).layout
        with data.open_slide(path) as slide:
            assert (slide.mpp_source, slide.why_no_mpp) == (stored.mpp_source, stored.why_no_mpp)
            assert slide.damage == stored.damage != ""
            assert slide.problems == stored.problems
            assert np.isclose(slide.mpp or 0, 0.5 * (path.name == "t.tif"))
