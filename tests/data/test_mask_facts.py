"""What masks hold: values, shares and solid areas, of files, drawings and slides."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.tiles import write_image
from PIL import Image

from fastmtl import data
from fastmtl.data import Region, RunLengths, Tile

tifffile = pytest.importorskip("tifffile")


def disc(size: int = 64, value: int = 255) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return (((x - size / 2) ** 2 + (y - size / 2) ** 2) < (size / 4) ** 2).astype(np.uint8) * np.uint8(value)


def test_values_and_shares_of_a_file(tmp_path):
    mask = disc(value=1)
    mask[:3, :3] = 9
    path = write_image(tmp_path / "mask.png", mask)
    facts = data.count_mask(path)
    assert facts.values.tolist() == [0, 1, 9]
    assert facts.counts.tolist() == np.bincount(mask.reshape(-1), minlength=256).tolist()
    assert facts.share() == pytest.approx((mask > 0).mean())
    assert facts.share(1) == pytest.approx(9 / mask.size)
    assert facts.solid[2] == 1  # of a square of 3 x 3 the middle
    assert (facts.top, facts.channels, facts.is_sample) == (9, 1, False)


def test_a_changed_file_is_counted_again(tmp_path):
    path = write_image(tmp_path / "mask.png", disc(value=1))
    assert data.count_mask(path) is data.count_mask(path)
    write_image(path, disc(32, 255))
    assert data.count_mask(path).values.tolist() == [0, 255]


def test_a_soft_edge_has_no_solid_areas(tmp_path):
    soft = Image.fromarray(disc()).resize((150, 150), Image.Resampling.BILINEAR)
    facts = data.count_mask(write_image(tmp_path / "soft.png", np.asarray(soft)))
    between = (facts.values > 0) & (facts.values < 255)
    assert between.sum() > 10
    assert facts.solid[between].sum() == 0


@pytest.mark.parametrize("colour", ["minisblack", "rgb"])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "jpeg"])
def test_a_mask_slide_is_counted_region_by_region(tmp_path, compression, colour):
    mask = np.zeros((512, 512), np.uint8)
    mask[100:300, 50:200] = 255
    pixels = np.repeat(mask[..., None], 3, 2) if colour == "rgb" else mask
    path = tmp_path / "mask.tif"
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric=colour, compression=compression, metadata=None)
    regions = [Region(path, x, y, 128, 128) for y in range(0, 512, 128) for x in range(0, 512, 128)]
    tiles = [Tile(str(number), region, region, None, "P") for number, region in enumerate(regions)]
    (seen,) = data.seen_masks(tiles)
    assert (seen.wrong, seen.facts.is_sample, seen.facts.top) == ("", False, 255)
    assert seen.facts.share(127) == pytest.approx((mask > 127).mean(), abs=1e-3)
    assert seen.facts.channels == (3 if colour == "rgb" else 1)
    assert len(seen.facts.pixels) == 1  # all channels are equal


def test_a_sample_finds_what_takes_more_bytes_than_blank_tiles(tmp_path):
    mask = np.zeros((2048, 2048), np.uint8)
    mask[1000:1010, 1500:1510] = 1
    path = tmp_path / "mask.tif"
    tifffile.imwrite(path, mask, tile=(64, 64), photometric="minisblack", compression="deflate", metadata=None)
    regions = [Region(path, x, y, 64, 64) for y in range(0, 2048, 64) for x in range(0, 2048, 64)]
    tiles = [Tile(str(number), region, region, None, "P") for number, region in enumerate(regions)]
    (seen,) = data.seen_masks(tiles)
    assert seen.facts.is_sample
    assert seen.facts.values.tolist() == [0, 1]
    (whole,) = data.seen_masks(tiles, sample=None)
    assert (whole.facts.is_sample, whole.facts.counts[1]) == (False, 100)


def test_what_a_slide_does_not_have_is_zero_as_in_the_loader(tmp_path):
    path = tmp_path / "mask.tif"
    tifffile.imwrite(path, np.full((64, 64), 255, np.uint8), tile=(64, 64), photometric="minisblack", metadata=None)
    assert data.count_mask(Region(path, 32, 0, 64, 64)).values.tolist() == [0, 255]


def test_drawings_are_counted_and_remembered():
    drawing = RunLengths("1 8", 8, 8)
    facts = data.count_mask(drawing)
    assert (facts.values.tolist(), facts.share()) == ([0, 255], 1 / 8)
    assert data.count_mask(RunLengths("1 8", 8, 8)) is facts
