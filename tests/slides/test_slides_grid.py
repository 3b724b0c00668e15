"""Where tissue is, and regions side by side over it."""

import numpy as np
import pytest
from helpers.slides import TILE, tissue_like, write_tiff

from fastmtl import data
from fastmtl.data.slides.grid import level_for
from fastmtl.data.slides.tissue_mask import TissueMask, tissue_pixels
from fastmtl.data.synthetic.tissue import ARCHITECTURES, expose, paint, random_stain

GLASS = 243


def stained(height, width, seed=0):
    """H&E as the demo data set paints it."""
    rng = np.random.default_rng(seed)
    haematoxylin, eosin, _ = paint(rng, height, width, ARCHITECTURES["Normal"])
    return expose(rng, haematoxylin, eosin, random_stain(rng))


def glass(height, width, seed=0):
    noise = np.random.default_rng(seed).normal(GLASS, 2, (height, width, 3))
    return np.clip(noise, 0, 255).astype(np.uint8)


def averaged(pixels, by):
    height, width = pixels.shape[0] // by, pixels.shape[1] // by
    return pixels[: height * by, : width * by].reshape(height, by, width, by, 3).mean((1, 3)).astype(np.uint8)


@pytest.mark.parametrize("seed", range(4))
def test_tissue_is_told_from_glass(seed):
    picture = glass(640, 960, seed)
    picture[160:480, 320:800] = stained(320, 480, seed)
    found = tissue_pixels(averaged(picture, 16))
    expected = np.zeros((40, 60), bool)
    expected[10:30, 20:50] = True
    both = (found & expected).sum() / (found | expected).sum()
    assert both > 0.95


def test_one_class_is_not_split_in_two():
    assert not tissue_pixels(averaged(glass(640, 640), 16)).any()
    assert tissue_pixels(averaged(stained(640, 640), 16)).mean() > 0.95


@pytest.mark.parametrize(
    "colour", [(20, 20, 25), (0, 0, 0), (30, 140, 60), (40, 90, 190), (60, 110, 150), (210, 30, 40), (20, 60, 160)]
)
def test_pens_and_black_borders_are_no_tissue(colour):
    picture = averaged(glass(640, 640), 16)
    picture[:, :6] = colour
    picture[20:24] = colour
    assert tissue_pixels(picture).mean() < 0.01


@pytest.mark.parametrize(
    "colour", [(150, 90, 150), (225, 160, 190), (95, 60, 120), (140, 100, 70), (200, 60, 90), (95, 110, 155)]
)
def test_stains_are_no_pens(colour):
    """Haematoxylin and eosin, pale eosin, dense nuclei, DAB, red blood cells, haematoxylin alone."""
    picture = averaged(glass(640, 640), 16)
    picture[10:30, 10:30] = colour
    assert 0.2 < tissue_pixels(picture).mean() < 0.3


def test_fractions_are_areas():
    mask = np.zeros((4, 8), bool)
    mask[1, 2:5] = True
    tissue = TissueMask.of(mask, 800, 400)
    assert tissue.share == 3 / 32
    assert tissue.fraction(200, 100, 100, 100) == pytest.approx(1)
    assert tissue.fraction(150, 100, 100, 100) == pytest.approx(0.5)
    assert tissue.fraction(250, 150, 100, 100) == pytest.approx(0.5)
    assert tissue.fraction(-100, 100, 400, 100) == pytest.approx(0.25)
    assert tissue.fraction(2000, 0, 50, 50) == 0


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    picture = glass(800, 1200)
    picture[:, 400:800] = stained(800, 400)
    path = write_tiff(tmp_path_factory.mktemp("grid") / "slide.tiff", picture, levels=3, compression="deflate")
    with data.open_slide(path) as opened:
        yield opened


def test_a_grid_covers_the_slide(slide):
    regions = data.grid(slide, 256, level=0)
    assert len(regions) == 4 * 5
    assert {(region.width, region.height, region.level) for region in regions} == {(256, 256, 0)}
    seen = np.zeros((800, 1200), bool)
    for region in regions:
        seen[region.y : region.y + 256, region.x : region.x + 256] = True
    assert seen.all()
    exact = data.grid(slide, 200, level=0)
    assert len(exact) == 4 * 6
    assert max(region.x for region in exact) == 1000


def test_neighbours_overlap_as_asked(slide):
    xs = sorted({region.x for region in data.grid(slide, 100, level=0, overlap=25)})
    assert np.diff(xs).tolist() == [75] * (len(xs) - 1)
    assert xs[-1] + 100 >= 1200
    coarse = sorted({region.x for region in data.grid(slide, 50, level=1, overlap=10)})
    assert np.diff(coarse).tolist() == [80] * (len(coarse) - 1)


@pytest.mark.parametrize(
    ("mpp", "level", "side"),
    [
        (0.5, 0, 64),
        (0.51, 0, 65),
        (0.75, 0, 96),
        (0.97, 1, 62),
        (1.0, 1, 64),
        (1.5, 1, 96),
        (2.0, 2, 64),
        (4.0, 2, 128),
    ],
)
def test_mpp_takes_the_coarsest_level_that_is_fine_enough(slide, mpp, level, side):
    regions = data.grid(slide, 64, mpp=mpp)
    assert {(region.level, region.width) for region in regions} == {(level, side)}
    number, scale = level_for(slide, mpp)
    assert scale * slide.mpp * slide.levels[number].downsample == pytest.approx(mpp)


def test_regions_without_tissue_are_left_out(slide):
    kept = data.grid(slide, 100, level=0, min_tissue=0.5)
    assert {region.x for region in kept} == {400, 500, 600, 700}
    assert len(kept) == 4 * 8
    assert slide.tissue_fraction(kept[0]) > 0.9
    assert slide.tissue_fraction(data.Region(slide.path, 0, 0, 100, 100)) < 0.1
    assert slide.tissue_fraction(data.Region(slide.path, 400, 0, 100, 200, 2)) > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of `mpp` and `level`"),
        ({"mpp": 1.0, "level": 0}, "one of `mpp` and `level`"),
        ({"level": 3}, "`level` must be 0 to 2"),
        ({"level": -1}, "`level` must be 0 to 2"),
        ({"mpp": 0.25}, "finer than"),
        ({"mpp": 0.0}, "above 0"),
        ({"mpp": 20.0}, "a tile would be"),
        ({"level": 0, "overlap": TILE}, "`overlap` must be"),
        ({"level": 0, "overlap": -1}, "`overlap` must be"),
        ({"level": 0, "min_tissue": 50}, "fraction, 0 to 1"),
    ],
)
def test_what_lies_outside_the_pyramid_is_an_error(slide, options, message):
    with pytest.raises(ValueError, match=message):
        data.grid(slide, TILE, **options)


def test_a_slide_without_scale_needs_one(tmp_path):
    path = write_tiff(tmp_path / "slide.tiff", tissue_like(), resolution=(1, 1), resolutionunit="NONE")
    with data.open_slide(path) as slide, pytest.raises(ValueError, match="open it with mpp"):
        data.grid(slide, 64, mpp=0.5)
    with data.open_slide(path, mpp=0.5) as slide:
        assert data.grid(slide, 64, mpp=0.5)
