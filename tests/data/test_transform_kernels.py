"""The compiled transform of decoded pixels against float64 arithmetic in NumPy, for every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.paths import ROOT

from fastmtl.data import Augmentation
from fastmtl.data.loading.augment import displacement
from fastmtl.data.loading.stitching import address_of
from fastmtl.data.loading.transform_cpu import colour_matrices
from fastmtl.ops.core.backends import extension

SCALE, SHIFT, OUTSIDE = np.array([0.02, 0.01, 0.5], np.float32), np.array([-1, 0, 2], np.float32), 240
BENT = Augmentation(rotation=40, zoom=(0.5, 1.5), elastic=0.3, grid=0.1, cells=3)
CASES = [
    # height, width of the sources; size of the output (blocks are of 256 columns, vectors of 16)
    (Augmentation(), 40, 31, 16),
    (Augmentation.none(), 33, 33, 33),
    (BENT, 30, 50, 17),
    (BENT, 300, 280, 300),
    (Augmentation(), 1, 1, 5),
    (Augmentation(), 2, 1, 19),
    (Augmentation(), 1, 2, 1),
]


def _positions(drawn, row, size, height, width):
    """Source positions in pixels from the first one's centre, float64 [2, size, size]."""
    v, u = (np.mgrid[:size, :size] + 0.5) / size
    if drawn.field.shape[-1]:
        u, v = np.stack([u, v]) + displacement(drawn.field[row], u, v)
    x, y = np.einsum("ij,jhw->ihw", drawn.matrix[row].astype(np.float64), np.stack([u, v, np.ones_like(u)]))
    return x * width - 0.5, y * height - 0.5


def _bilinear(picture, x, y, outside):
    """float64 [C, size, size]."""
    left, above = np.floor(x).astype(int), np.floor(y).astype(int)
    right, below = x - left, y - above
    total = np.zeros((picture.shape[2], *x.shape))
    for down, across, weight in (
        (0, 0, (1 - right) * (1 - below)),
        (0, 1, right * (1 - below)),
        (1, 0, (1 - right) * below),
        (1, 1, right * below),
    ):
        i, j = above + down, left + across
        within = (i >= 0) & (j >= 0) & (i < picture.shape[0]) & (j < picture.shape[1])
        values = picture[np.clip(i, 0, picture.shape[0] - 1), np.clip(j, 0, picture.shape[1] - 1)].transpose(2, 0, 1)
        total += weight * np.where(within, values, float(outside))
    return total


class _Batch:
    """Three sources, as the kernels take them; the bytes around them belong to others."""

    def __init__(self, augmentation, height, width, size, channels=3):
        random = np.random.default_rng(height * 1000 + width)
        self.size, self.drawn = size, augmentation.sample(5, 1, np.arange(3))
        frames = random.integers(0, 256, (3, height + 2, width + 4, channels), dtype=np.uint8)
        self.pictures = frames[:, 1:-1, 1:-3]
        self.table = np.array(
            [(address_of(one), one.strides[0], height, width, channels) for one in self.pictures], np.int64
        )
        self.matrix, self.field = (np.ascontiguousarray(one) for one in (self.drawn.matrix, self.drawn.field))
        self.colour, self.frames = colour_matrices(self.drawn.colour), frames

    @property
    def sources(self):
        return address_of(self.table), address_of(self.matrix), address_of(self.field), self.field.shape[-1]

    def colours(self, noise=0.0):
        self.noise = np.full(3, noise, np.float32)
        return [address_of(one) for one in (self.colour, self.noise, self.drawn.keys, SCALE, SHIFT)]

    def levels(self, row, outside=OUTSIDE):
        picture = self.pictures[row]
        return _bilinear(picture, *_positions(self.drawn, row, self.size, *picture.shape[:2]), outside)


@pytest.mark.parametrize(("augmentation", "height", "width", "size"), CASES)
def test_images(augmentation, height, width, size):
    batch = _Batch(augmentation, height, width, size)
    out = np.full((3, 3, size, size), np.nan, np.float32)
    extension().transform_images(batch.sources, (size, 0, 2), batch.colours(), OUTSIDE, address_of(out))
    assert np.isnan(out[2]).all(), "a row that was not asked for"
    for row in range(2):
        levels = np.concatenate([batch.levels(row), np.ones((1, size, size))])
        wanted = np.clip(np.einsum("ij,jhw->ihw", batch.colour[row], levels), 0, 255)
        found = (out[row] - SHIFT[:, None, None]) / SCALE[:, None, None]
        assert np.abs(found - wanted).max() < 0.05


# From a source 300 high and 290 wide: (x, y) in its pixels from one output column to the next, from one line to the
# next, and of the first output pixel.
CUTS = {
    "a cut": ((1, 0), (0, 1), (5, 3)),
    "up to the corner": ((1, 0), (0, 1), (10, 20)),
    "beyond the right edge": ((1, 0), (0, 1), (11, 20)),
    "above the upper edge": ((1, 0), (0, 1), (0, -1)),
    "flipped": ((-1, 0), (0, 1), (279, 0)),
    "turned": ((0, 1), (-1, 0), (280, 7)),
    "turned back and flipped": ((0, -1), (-1, 0), (279, 279)),
    "half a pixel beside": ((1, 0), (0, 1), (5.5, 3)),
    "each pixel twice": ((0.5, 0), (0, 0.5), (5, 3)),
    "sheared": ((1, 0), (0.01, 0.5), (5, 3)),
}


@pytest.mark.parametrize("cut", CUTS)
def test_cuts_flips_and_quarter_turns(cut):
    batch = _Batch(Augmentation.none(), 300, 290, 280)
    column, line, first = (np.array(one, np.float64) for one in CUTS[cut])
    steps = np.stack([column * 280, line * 280, first + 0.5 - (column + line) / 2], 1)
    batch.matrix[:] = batch.drawn.matrix[:] = steps / np.array([[290], [300]])
    out, levels = np.zeros((3, 3, 280, 280), np.float32), np.zeros((3, 3, 280, 280), np.uint8)
    inside = np.zeros((3, 280, 280), np.uint8)
    extension().transform_images(batch.sources, (280, 0, 3), batch.colours(), OUTSIDE, address_of(out))
    extension().warp_images(batch.sources, (280, 0, 3), OUTSIDE, address_of(levels), address_of(inside))
    x, y = (column[i] * np.arange(280) + line[i] * np.arange(280)[:, None] + first[i] for i in range(2))
    within = (x >= 0) & (y >= 0) & (x <= 289) & (y <= 299)
    for row in range(3):
        wanted = _bilinear(batch.pictures[row], x, y, OUTSIDE)
        assert np.abs((out[row] - SHIFT[:, None, None]) / SCALE[:, None, None] - wanted).max() < 0.1
        assert np.abs(levels[row] - wanted).max() < 0.6
        near = np.minimum.reduce([np.abs(x), np.abs(y), np.abs(x - 289), np.abs(y - 299)]) < 1e-3
        assert ((inside[row] == within) | near).all()


@pytest.mark.parametrize(("augmentation", "height", "width", "size"), CASES)
def test_warped_images(augmentation, height, width, size):
    batch = _Batch(augmentation, height, width, size)
    out, inside = np.zeros((3, 3, size, size), np.uint8), np.full((3, size, size), 7, np.uint8)
    extension().warp_images(batch.sources, (size, 0, 3), OUTSIDE, address_of(out), address_of(inside))
    for row in range(3):
        assert np.abs(out[row] - batch.levels(row)).max() < 0.55
        x, y = _positions(batch.drawn, row, size, height, width)
        within = (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
        near = np.minimum.reduce([np.abs(x), np.abs(y), np.abs(x - width + 1), np.abs(y - height + 1)]) < 1e-3
        assert ((inside[row] == within) | near).all()


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize(("augmentation", "height", "width", "size"), CASES)
def test_maps(augmentation, height, width, size, channels):
    batch = _Batch(augmentation, height, width, size, channels)
    taken = (channels + 1) // 2
    smooth, nearest = np.zeros((2, 3, taken, size, size), np.uint8)
    batch.table[1, 0] = 0  # a tile without this map
    share = size, 0, 3
    extension().transform_maps(batch.sources, share, 127.0, False, taken, address_of(smooth))
    extension().transform_maps(batch.sources, share, 127.0, True, taken, address_of(nearest))
    assert not smooth[1].any()
    assert not nearest[1].any()
    for row in (0, 2):
        levels = batch.levels(row, 0)[:taken]
        assert ((smooth[row] == (levels > 127)) | (np.abs(levels - 127) < 0.1)).all()
        x, y = _positions(batch.drawn, row, size, height, width)
        i, j = (np.floor(one + 0.5).astype(int) for one in (y, x))
        within = (i >= 0) & (j >= 0) & (i < height) & (j < width)
        values = batch.pictures[row][np.clip(i, 0, height - 1), np.clip(j, 0, width - 1)].transpose(2, 0, 1)
        tie = np.maximum(np.abs(x - np.rint(x)), np.abs(y - np.rint(y))) > 0.498
        assert ((nearest[row] == np.where(within, values[:taken], 0)) | tie).all()


@pytest.mark.parametrize("size", [1, 40, 270])
def test_noise_has_its_deviation_and_is_that_of_the_second_pass(size):
    """Grey pixels, so that nothing is clipped."""
    batch = _Batch(Augmentation.none(), size, size, size)
    batch.frames[:] = 128
    batch.drawn.keys[:] = 1, 2, 3
    plain, noisy = np.empty((2, 3, 3, size, size), np.float32)
    share = size, 0, 3
    extension().transform_images(batch.sources, share, batch.colours(), OUTSIDE, address_of(plain))
    extension().transform_images(batch.sources, share, batch.colours(10), OUTSIDE, address_of(noisy))
    extension().add_noise(share, batch.colours(10), address_of(plain))
    np.testing.assert_allclose(plain, noisy, atol=2e-4)
    levels = (noisy - SHIFT[:, None, None]) / SCALE[:, None, None]
    if size > 1:
        assert levels.std() == pytest.approx(10, rel=0.03)
        assert abs(levels.mean() - 128) < 0.5
        assert len({one.tobytes() for row in levels for one in row}) == 9, "each plane has its own"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_positions_that_are_no_numbers_are_outside(value):
    batch = _Batch(Augmentation.none(), 20, 20, 20)
    batch.matrix[:, 0, 2] = value
    out, inside = np.zeros((3, 3, 20, 20), np.uint8), np.ones((3, 20, 20), np.uint8)
    extension().warp_images(batch.sources, (20, 0, 3), OUTSIDE, address_of(out), address_of(inside))
    assert (out == OUTSIDE).all()
    assert not inside.any()


@pytest.mark.parametrize("count", [1, 2, 1366, 9000])
def test_one_pixel_that_differs_is_found(count):
    pixels = np.full((count, 3), 7, np.uint8)
    assert extension().is_constant(address_of(pixels), count, 3)
    for at in {count - 1, count // 2, 1} - {0, count}:
        pixels[at, 1] = 8
        assert not extension().is_constant(address_of(pixels), count, 3)
        pixels[at, 1] = 7


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_are_stitched(channels):
    """Beyond all four edges, over each other, with padding, and beside the image."""
    random = np.random.default_rng(channels)
    places = [(-4, -3, 10, 9), (5, 2, 12, 20), (12, -2, 20, 30), (0, 15, 3, 2), (40, 3, 5, 5), (3, -9, 4, 9)]
    parts = [random.integers(0, 256, (h + 2, w + 1, channels), dtype=np.uint8) for _, _, w, h in places]
    tiles = np.array(
        [(address_of(one), one.strides[0], *place) for one, place in zip(parts, places, strict=True)], np.int64
    )
    out = np.zeros((18, 25, channels), np.uint8)
    extension().stitch_tiles(address_of(tiles), len(tiles), channels, OUTSIDE, 18, 25, address_of(out))
    wanted = np.full((100, 100, channels), OUTSIDE, np.uint8)  # with 20 pixels around
    for one, (x, y, width, height) in zip(parts, places, strict=True):
        wanted[20 + y : 20 + y + height, 20 + x : 20 + x + width] = one[:height, :width]
    np.testing.assert_array_equal(out, wanted[20:38, 20:45])


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_the_other_instruction_sets(isa):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "not instruction_sets"]
    subprocess.run(command, env=os.environ | {"FASTMTL_ISA": isa}, check=True, timeout=600, cwd=ROOT)
