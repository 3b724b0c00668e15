"""Which picture of a TIFF is the slide, what stands beside it, and colours that are kept apart: against OpenSlide where
it opens the file, else against what tifffile finds."""

import numpy as np
import pytest
import tifffile
from helpers.slides import TILE, halved, patch_tag, tissue_like, write_tiff

from fastmtl import data
from fastmtl.data.dataset import BACKGROUND

PIXELS = tissue_like(300, 210)
TILED = {"photometric": "rgb", "tile": (TILE, TILE), "compression": "deflate"}
PLANES = {"photometric": "minisblack", "tile": (TILE, TILE), "compression": "deflate"}
APERIO = "Aperio Image Library v12.0.15\n300x210 (64x64) JPEG/RGB Q=70|AppMag = 20|MPP = 0.4990"


def whole(slide, level=0):
    return slide.read_region(0, 0, slide.levels[level].width, slide.levels[level].height, level)


def oddities(slide):
    return [problem for problem in slide.problems if problem != slide.why_no_mpp]


def write(path, *pages, ome=False):
    """Pages are (pixels, tifffile's options), one after the other."""
    with tifffile.TiffWriter(path, ome=ome, byteorder="<") as file:
        for pixels, options in pages:
            file.write(pixels, **({} if ome else {"metadata": None}), **options)
    return path


def of_ome(name, **more):
    return {**TILED, "metadata": {"axes": "YXS", "Name": name, **more}}


MACRO = tissue_like(200, 80, seed=1)
LARGER = {
    "ome, macro first": ([(MACRO, of_ome("macro")), (PIXELS, of_ome("scan"))], True),
    "ome, label image first": ([(MACRO, of_ome("a.svs - label image")), (PIXELS, of_ome("a.svs"))], True),
    "ome, two scenes": ([(halved(PIXELS), of_ome("scene 1")), (PIXELS, of_ome("scene 2"))], True),
    "ome, macro larger": ([(tissue_like(640, 480), of_ome("macro")), (PIXELS, of_ome("scan"))], True),
    "tiles, small first": ([(MACRO, TILED), (PIXELS, TILED)], False),
    "strips, then tiles": ([(MACRO, {"photometric": "rgb"}), (PIXELS, TILED)], False),
    "levels from coarse to fine": ([(halved(PIXELS), TILED), (PIXELS, TILED)], False),
}


@pytest.mark.parametrize("kind", LARGER)
def test_the_slide_is_the_largest_picture_that_is_named_nothing_else(tmp_path, kind):
    pages, ome = LARGER[kind]
    path = write(tmp_path / ("a.ome.tif" if ome else "a.tif"), *pages, ome=ome)
    with data.open_slide(path) as slide:
        np.testing.assert_array_equal(whole(slide), PIXELS)
        assert any("page 0" in problem and "set aside" in problem for problem in oddities(slide))
        if "macro" in kind:
            np.testing.assert_array_equal(slide.associated("macro"), pages[0][0])


@pytest.mark.parametrize("second", [of_ome("scene 2"), of_ome("label-free")])
def test_another_ome_image_is_no_level(tmp_path, second):
    path = write(tmp_path / "a.ome.tif", (PIXELS, of_ome("scene 1")), (halved(PIXELS), second), ome=True)
    with data.open_slide(path) as slide, tifffile.TiffFile(path) as file:
        assert len(slide.levels) == len(file.series[0].levels) == 1
        assert "set aside" in oddities(slide)[0]


def test_ordinary_slides_have_nothing_set_aside(tmp_path):
    beside = [(MACRO, {"photometric": "rgb", "description": f"Aperio\n{name} 200x80"}) for name in ("label", "macro")]
    thumbnail = (PIXELS[::8, ::8], {"photometric": "rgb", "description": "Aperio\n300x210 -> 38x27"})
    path = write(tmp_path / "a.svs", (PIXELS, {**TILED, "description": APERIO}), thumbnail, *beside)
    with data.open_slide(path) as slide:
        assert slide.associated_names == ("thumbnail", "label", "macro")
        assert not slide.problems


@pytest.mark.parametrize("aperio", [True, False], ids=["aperio", "generic"])
def test_label_and_macro_without_a_description_are_told_by_their_kind(tmp_path, aperio):
    openslide = pytest.importorskip("openslide")
    words = {"description": APERIO} if aperio else {}
    pages = [
        (PIXELS, {**TILED, **words}),
        (PIXELS[::8, ::8], {"photometric": "rgb", "subfiletype": 0 if aperio else 1}),
        (halved(PIXELS), {**TILED, "subfiletype": 0 if aperio else 1, **words}),
        (tissue_like(80, 90), {"photometric": "rgb", "subfiletype": 1}),
        (tissue_like(200, 60), {"photometric": "rgb", "subfiletype": 9}),
    ]
    path = write(tmp_path / "a.svs", *pages)
    with data.open_slide(path) as slide, openslide.OpenSlide(path) as other:
        assert sorted(slide.associated_names) == ["label", "macro", "thumbnail"]
        assert not aperio or sorted(other.associated_images) == ["label", "macro", "thumbnail"]
        assert [(level.width, level.height) for level in slide.levels] == list(other.level_dimensions)
        assert not oddities(slide)


def planes(names=("Red", "Green", "Blue"), **more):
    return {**PLANES, "metadata": {"axes": "CYX", "Channel": {"Name": list(names), **more}}}


RGB = np.ascontiguousarray(np.moveaxis(PIXELS, -1, 0))
OPAQUE = np.concatenate([RGB, np.full((1, 210, 300), 255, np.uint8)])
COLOURS = {
    "pages": (RGB, planes()),
    "pages of blue, green, red": (RGB[::-1], planes(("Blue", "green", " RED "))),
    "pages told by their colours": (RGB, planes(("", "", ""), Color=[-16776961, 16711935, 65535])),
    "pages with alpha": (OPAQUE, planes(("Red", "Green", "Blue", "Alpha"))),
    "planar": (RGB, {**TILED, "planarconfig": "separate", "metadata": {"axes": "CYX"}}),
    "planar with alpha": (OPAQUE, {**TILED, "planarconfig": "separate", "extrasamples": ["unassalpha"]}),
    "planar strips": (RGB, {"photometric": "rgb", "planarconfig": "separate", "rowsperstrip": 50}),
    "planar JPEG": (RGB, {**TILED, "planarconfig": "separate", "compression": "jpeg"}),
    "planar with a predictor": (RGB, {**TILED, "planarconfig": "separate", "predictor": 2}),
}


@pytest.mark.parametrize("kind", COLOURS)
def test_colours_that_are_kept_apart_are_put_together(tmp_path, kind):
    stored, options = COLOURS[kind]
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(stored, subifds=1, **options)
        small = {name: value for name, value in options.items() if name != "metadata"}
        file.write(np.ascontiguousarray(stored[:, ::2, ::2]), subfiletype=1, **small)
    least = 20 if "JPEG" in kind else 0
    data.index_slide(path)  # what is stored says the same
    with data.open_slide(path) as slide:
        assert not oddities(slide)
        assert [(level.width, level.height) for level in slide.levels] == [(300, 210), (150, 105)]
        assert np.abs(whole(slide).astype(int) - PIXELS).max() <= least
        assert np.abs(whole(slide, 1).astype(int) - halved(PIXELS)).max() <= least
        (piece,) = slide.encoded_tiles(data.Region(path, 250, 100, 100, 80))
        expected = np.full((80, 100, 3), BACKGROUND, np.uint8)
        expected[:, :50] = whole(slide)[100:180, 250:]
        np.testing.assert_array_equal(piece.pixels, expected)


def test_a_damaged_colour_plane_is_named(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, RGB, **planes())
    patch_tag(path, 324, 9, page=1)  # the first tile of green
    with data.open_slide(path) as slide, pytest.raises(data.DamagedPieceError) as found:
        whole(slide)
    assert found.value.coordinate == (0, 0, 0)


REFUSED = {
    "fluorescence": ({"a.ome.tif": (RGB, planes(("DAPI", "FITC", "Cy5")))}, "3 channels .DAPI, FITC, Cy5"),
    "two channels": ({"a.ome.tif": (RGB[:2], planes(("Red", "Green")))}, "2 channels"),
    "unnamed channels": ({"a.ome.tif": (RGB, {**PLANES, "metadata": {"axes": "CYX"}})}, "not declared as red, green"),
    "ImageJ's channels": ({"a.tif": (RGB, {"imagej": True, "metadata": {"axes": "CYX"}})}, "3 channels"),
    "three grey pages": ({"a.tif": (RGB, {**PLANES, "metadata": None})}, "3 grey pages of one size"),
    "four grey pages": ({"a.tif": (OPAQUE, PLANES)}, "4 grey pages of one size"),
    "16 bits": ({"a.ome.tif": (RGB.astype(np.uint16), planes())}, "16-bit samples"),
    "three samples of grey": ({"a.tif": (PIXELS, {**PLANES, "planarconfig": "contig"})}, "3 samples a pixel"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_may_be_one_colour_of_several_is_never_grey(tmp_path, kind):
    ((name, (pixels, options)),) = REFUSED[kind][0].items()
    tifffile.imwrite(tmp_path / name, pixels, **options)
    with pytest.raises(data.SlideError, match=REFUSED[kind][1]):
        data.open_slide(tmp_path / name)


STACK = np.stack([PIXELS, tissue_like(300, 210, seed=1)])
STACKS = {
    "focal planes": ({**TILED, "metadata": {"axes": "ZYXS"}}, "a.ome.tif", "2 focal planes"),
    "times": ({**TILED, "metadata": {"axes": "TYXS"}}, "a.ome.tif", "2 times"),
    "pages of one size": ({**TILED, "metadata": None}, "a.tif", "2 pictures of its size"),
}


@pytest.mark.parametrize("kind", STACKS)
def test_of_a_stack_the_first_is_read_and_the_others_are_told(tmp_path, kind):
    options, name, words = STACKS[kind]
    tifffile.imwrite(tmp_path / name, STACK, **options)
    with data.open_slide(tmp_path / name) as slide:
        np.testing.assert_array_equal(whole(slide), PIXELS)
        assert words in oddities(slide)[0]
        assert "set aside" in oddities(slide)[0]
        assert not slide.associated_names


def test_red_green_and_blue_of_the_first_focal_plane(tmp_path):
    path = tmp_path / "a.ome.tif"
    both = np.ascontiguousarray(np.moveaxis(STACK, -1, 1))
    tifffile.imwrite(path, both, **{**planes(), "metadata": {**planes()["metadata"], "axes": "ZCYX"}})
    with data.open_slide(path) as slide:
        np.testing.assert_array_equal(whole(slide), PIXELS)
        assert "2 focal planes" in oddities(slide)[0]


def test_levels_are_sorted_and_what_fits_none_is_told(tmp_path):
    reduced = {**TILED, "subfiletype": 1}
    small = halved(halved(PIXELS))
    pages = [(PIXELS, TILED), (small, reduced), (halved(PIXELS), reduced), (halved(PIXELS), reduced)]
    path = write(tmp_path / "a.tif", *pages, (PIXELS[::2, ::5], reduced))
    with data.open_slide(path) as slide:
        assert [level.width for level in slide.levels] == [300, 150, 75]
        np.testing.assert_array_equal(whole(slide, 2), small)
        told = " ".join(oddities(slide))
        assert "second level of 150" in told
        assert "page 4 (60x105) is set aside" in told


@pytest.mark.parametrize("options", [{"byteorder": ">"}, {"tile": (512, 512)}, {"byteorder": ">", "bigtiff": True}])
def test_byte_orders_and_tiles_beyond_the_picture(tmp_path, options):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, metadata=None, **{**TILED, **options})
    with data.open_slide(path) as slide:
        np.testing.assert_array_equal(whole(slide), PIXELS)


def without_tile(path, tile, page):
    for code in (324, 325):
        with tifffile.TiffFile(path, mode="r+b") as file:
            tag = file.pages[page].tags[code]
            tag.overwrite([0 if at == tile else value for at, value in enumerate(tag.value)])


@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
@pytest.mark.parametrize("tile", [0, 4, 5])
def test_tiles_that_a_coarser_level_lacks_are_drawn_from_the_finer_one(tmp_path, compression, tile):
    openslide = pytest.importorskip("openslide")
    options = {**TILED, "compression": compression, "description": APERIO}
    path = write(tmp_path / "a.svs", (PIXELS, options), (halved(PIXELS), options), (PIXELS[::4, ::4], options))
    without_tile(path, tile, 1)
    without_tile(path, 0, 2)
    with data.open_slide(path) as slide, openslide.OpenSlide(path) as other:
        for level in (1, 2):
            theirs = np.asarray(other.read_region((0, 0), level, other.level_dimensions[level]).convert("RGB"))
            assert np.abs(whole(slide, level).astype(int) - theirs).mean() < 3, level
            seen = np.zeros((*whole(slide, level).shape[:2], 1), int)
            region = data.Region(path, 0, 0, slide.levels[level].width, slide.levels[level].height, level)
            for piece in slide.encoded_tiles(region):
                seen[piece.y : piece.y + piece.height, piece.x : piece.x + piece.width] += 1
            assert (seen == 1).all()
        assert "1 of 6 of level 1 (drawn from level 0)" in oddities(slide)[0]


def test_a_tile_that_no_level_has_is_background(tmp_path):
    openslide = pytest.importorskip("openslide")
    options = {**TILED, "description": APERIO}
    path = write(tmp_path / "a.svs", (PIXELS, options), (halved(PIXELS), options))
    without_tile(path, 0, 0)
    with data.open_slide(path) as slide, openslide.OpenSlide(path) as other:
        assert (whole(slide)[:TILE, :TILE] == BACKGROUND).all()
        np.testing.assert_array_equal(whole(slide)[:, TILE:], PIXELS[:, TILE:])
        # What Aperio's writer made of it at the next level may be corrupt, and counts as missing too.
        theirs = np.asarray(other.read_region((0, 0), 1, other.level_dimensions[1]))
        drawn = theirs[..., 3:] == 255
        assert not drawn[: TILE // 2 - 1, : TILE // 2 - 1].any()
        ours = whole(slide, 1)
        assert np.abs(np.where(drawn, ours.astype(int) - theirs[..., :3], 0)).mean() < 3
        assert "1 of 20 of level 0 (background), 1 of 6 of level 1" in oddities(slide)[0]


def test_a_file_that_ends_before_its_pages_do_is_damaged(tmp_path):
    path = write_tiff(tmp_path / "a.tif", PIXELS, levels=2)
    with tifffile.TiffFile(path) as file:
        end = file.pages[1].offset
    path.write_bytes(path.read_bytes()[: end - 10])
    with data.open_slide(path) as slide:
        assert "the pages after the first 1 lie beyond its end" in slide.damage
        assert slide.damage in slide.problems
