"""Every file of the real and synthetic slides, against OpenSlide and tifffile; skipped where they are absent."""

import logging

import numpy as np
import pytest
import tifffile
from helpers.tiles import shared_data

from fastmtl import data

# name -> size, levels, mpp, whether the loader's decoder gets its pieces, something of its problems
SLIDES = {
    "wsi/CMU-1-Small-Region.svs": ((2220, 2967), 1, 0.499, True, ""),
    "wsi/CMU-1-Small-Region.jpeg.tiff": ((2220, 2967), 1, None, True, "0.00499 x 0.00499"),
    "wsi/CMU-1-Small-Region.jp2.tiff": ((2220, 2967), 1, None, False, "0.00499 x 0.00499"),
    "wsi/CMU-1-Small-Region.webp.tiff": ((2220, 2967), 1, None, False, "0.00499 x 0.00499"),
    "wsi/XYC-half-mpp.tiff": ((512, 512), 1, 0.5, False, ""),
    "wsi/XYC.jp2": ((512, 512), 1, None, False, "says nothing"),
    "wsi/XYC.png": ((512, 512), 1, None, True, "says nothing"),
    "wsi_synthetic/grey10kx5k.tif": ((10000, 5000), 1, None, False, "352.778"),
    "wsi_synthetic/yb10kx5k.png": ((10000, 5000), 1, None, False, "says nothing"),
    "wsi_synthetic/yb10kx5k.zstd.tiff": ((10000, 5000), 5, None, False, "352.858"),
    "wsi_synthetic/small_la.tiff": ((2, 1), 1, None, False, "1000 x 1000"),
    "wsi_synthetic/test_orient0.tif": ((120, 180), 3, None, True, "orientation 0"),
    "wsi_synthetic/test_orient6.tif": ((180, 120), 3, None, False, "352.858"),
    "wsi_synthetic/openslide_python/boxes.tiff": ((300, 250), 4, None, False, "352.778"),
    "wsi_synthetic/openslide_python/boxes.png": ((300, 250), 1, None, False, "says nothing"),
    "wsi_synthetic/openslide_python/boxes-no-icc.png": ((300, 250), 1, None, False, "says nothing"),
    "wsi_synthetic/openslide_python/boxes_0.dcm": ((16, 16), 1, 0.499, True, ""),
    "wsi_synthetic/openslide_python/boxes_1.dcm": ((16, 16), 1, 0.499, True, ""),
    "wsi_synthetic/openslide_python/small.svs": ((16, 16), 1, 0.499, True, ""),
    "wsi_synthetic/openslide_python/😐.svs": ((16, 16), 1, 0.499, True, ""),
    "wsi_synthetic/openslide_python/😐.png": ((300, 250), 1, None, False, "says nothing"),
}
BY_OPENSLIDE = [
    *("wsi/CMU-1-Small-Region.svs", "wsi/CMU-1-Small-Region.jpeg.tiff", "wsi_synthetic/yb10kx5k.zstd.tiff"),
    *("wsi_synthetic/openslide_python/boxes.tiff", "wsi_synthetic/openslide_python/boxes_0.dcm"),
    *("wsi_synthetic/openslide_python/small.svs", "wsi_synthetic/test_orient0.tif"),
]
BY_TIFFFILE = [name for name in SLIDES if name.endswith((".tif", ".tiff", ".svs")) and "small_la" not in name]


_SLOW = "wsi_synthetic/yb10kx5k.png"  # 50 million pixels in one piece


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == _SLOW)) for name in SLIDES])
def test_what_each_file_is(name, tmp_path):
    path = shared_data(name)
    if name.endswith(".dcm"):
        pytest.importorskip("pydicom")
    size, levels, mpp, encoded, problem = SLIDES[name]
    found = data.index_slide(path, index_folder=tmp_path)
    with data.open_slide(path, index_folder=tmp_path) as slide:
        assert (slide.levels[0].width, slide.levels[0].height) == size
        assert (len(slide.levels), slide.mpp) == (levels, mpp)
        assert problem in " ".join(slide.problems)
        assert bool(slide.problems) == bool(problem)
        assert slide.problems == found.layout.problems
        full = slide.levels[0]  # of a region that is much smaller than its tile, the pixels are kept
        size = [max(16, -(-side // 3)) for side in (full.tile_width, full.tile_height)]
        pieces = slide.encoded_tiles(data.Region(path, 0, 0, *size))
        assert [piece.data is not None for piece in pieces] == [encoded]
        for picture in slide.associated_names:
            assert slide.associated(picture).size


@pytest.mark.parametrize("name", BY_OPENSLIDE)
def test_regions_equal_openslide(name):
    openslide = pytest.importorskip("openslide")
    path, rng = shared_data(name), np.random.default_rng(0)
    with data.open_slide(path) as slide, openslide.OpenSlide(path) as other:
        assert list(slide.associated_names) == sorted(
            other.associated_images, key=["thumbnail", "label", "macro"].index
        )
        for number, level in enumerate(slide.levels):
            assert level.downsample == pytest.approx(other.level_downsamples[number])
            for _ in range(12):
                # Positions that fall on this level's pixels: between them OpenSlide interpolates.
                x, y = (int(at) for at in rng.integers(-40, (level.width, level.height)))
                width, height = (int(side) for side in rng.integers(1, 500, 2))
                if level.downsample != round(level.downsample):
                    x, y = 0, 0
                place = (round(x * level.downsample), round(y * level.downsample))
                expected = np.asarray(other.read_region(place, number, (width, height)))
                found = slide.read_region(*place, width, height, number)
                inside = expected[..., 3] > 0
                assert (found[~inside] == 240).all()
                np.testing.assert_array_equal(found[inside], expected[inside][:, :3])


@pytest.mark.parametrize("name", BY_TIFFFILE)
def test_levels_equal_tifffile(name):
    path = shared_data(name)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    with data.open_slide(path) as slide, tifffile.TiffFile(path) as file:
        for number, page in enumerate(file.series[0].levels):
            stored, level = page.asarray(), slide.levels[number]
            stored = np.rot90(stored, -1) if "orient6" in name else stored
            assert stored.shape[:2] == (level.height, level.width)
            # In parts, so that stitching shows; of the largest some.
            rows, step = (700, 700) if level.height < 4000 else (150, 1200)
            for y in range(0, level.height, step):
                height = min(rows, level.height - y)
                part = slide.read_region(0, round(y * level.downsample), level.width, height, number)
                expected = stored[y : y + height].reshape(height, level.width, -1)
                np.testing.assert_array_equal(part, np.broadcast_to(expected, part.shape))


def test_one_region_in_four_codecs():
    """The same tissue: JPEG from the scanner, and converted from it."""
    folder = shared_data("wsi")
    with data.open_slide(folder / "CMU-1-Small-Region.svs") as slide:
        truth = slide.read_region(900, 1300, 300, 300).astype(int)
    for codec in ("jpeg", "jp2", "webp"):
        with data.open_slide(folder / f"CMU-1-Small-Region.{codec}.tiff", mpp=0.499) as slide:
            found = slide.read_region(900, 1300, 300, 300)
            assert slide.problems == ()
            assert np.abs(found - truth).mean() < 15, codec


def test_coordinates_are_where_they_are_drawn():
    """A picture whose blocks hold their own coordinates, in three formats."""
    folder = shared_data("wsi")
    with data.open_slide(folder / "XYC.png") as slide:
        truth = slide.read_region(0, 0, 512, 512)
    for name in ("XYC.jp2", "XYC-half-mpp.tiff"):
        with data.open_slide(folder / name) as slide:
            np.testing.assert_array_equal(slide.read_region(100, 37, 200, 300), truth[37:337, 100:300])


def test_files_that_are_no_sound_slides(tmp_path):
    folder = shared_data("wsi_synthetic") / "openslide_python"
    with pytest.raises(data.SlideError, match="TIFF compression 52479; readable are deflate"):
        data.open_slide(folder / "unopenable.tiff")
    found = data.index_slide(folder / "unreadable.svs", index_folder=tmp_path)
    assert "tile at x=0, y=0 of level 0: the JPEG's header is damaged" in found.layout.problems[0]
    with data.open_slide(folder / "unreadable.svs") as slide, pytest.raises(data.DamagedPieceError, match="header"):
        slide.read_region(0, 0, 16, 16)
    pytest.importorskip("openslide")
    with pytest.raises(data.SlideError, match="no known format"):
        data.open_slide(folder / "SOURCE.txt")


def test_tissue_of_a_real_slide():
    """Skin in the middle and at the bottom, glass to the upper left and to the right."""
    with data.open_slide(shared_data("wsi") / "CMU-1-Small-Region.svs") as slide:
        regions = data.grid(slide, 256, mpp=0.5, min_tissue=0.7)
        assert 20 < len(regions) < 40
        assert slide.tissue_fraction(data.Region(slide.path, 0, 0, 500, 800)) < 0.02
        assert slide.tissue_fraction(data.Region(slide.path, 1800, 0, 400, 500)) < 0.05
        assert slide.tissue_fraction(data.Region(slide.path, 950, 1800, 250, 700)) > 0.95
