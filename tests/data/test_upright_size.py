"""The size of an image file without its pixels is that of its pixels, whatever rotation it asks for."""

import numpy as np
import pytest
from PIL import Image

from fastmtl.data.checks.damaged_tiles import check_tiles
from fastmtl.data.dataset import Tile
from fastmtl.data.images.pictures import open_picture, picture_size, upright_size

PIXELS = np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "lzw.tif", "jpeg.tif"])
def test_size_and_pixels_agree(tmp_path, suffix, orientation):
    exif, file = Image.Exif(), tmp_path / f"x.{suffix}"
    exif[274] = orientation
    name = suffix.split(".")[0]
    compression = {"compression": {"lzw": "tiff_lzw", "jpeg": "jpeg"}[name]} if name in ("lzw", "jpeg") else {}
    Image.fromarray(PIXELS).save(file, exif=exif, **compression)
    height, width = open_picture(file).shape[:2]
    assert picture_size(file) == (width, height) == ((37, 61) if orientation >= 5 else (61, 37))
    with Image.open(file) as image:
        image.load()
        if image.format == "TIFF":  # rotated when read
            assert upright_size(image) == (width, height)
    wrong_mask = tmp_path / "mask.png"
    Image.fromarray(np.zeros((width, height), np.uint8)).save(wrong_mask)
    assert check_tiles([Tile("x", file, mask=wrong_mask, label=None, group="x")])
