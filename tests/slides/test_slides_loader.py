"""Regions of slides through the loader: the pixels that `read_region` gives."""

import numpy as np
import pytest
from helpers.slide_checks import batches_equal_regions
from helpers.slides import patch_tag, tissue_like, write_jpeg_with_tables, write_tiff
from PIL import Image

from fastmtl import data


@pytest.mark.parametrize("kind", ["jpeg", "deflate", "jpeg2000", "png", "planes", "empty tiles"])
def test_batches_are_what_read_region_gives(tmp_path, kind):
    pixels, path = tissue_like(), tmp_path / "slide.any"
    if kind == "jpeg":
        write_jpeg_with_tables(path, pixels, "rgb")
    elif kind == "png":
        Image.fromarray(pixels).save(path, format="PNG")
    elif kind == "planes":
        write_tiff(path, np.moveaxis(pixels, -1, 0), planarconfig="separate", compression="deflate")
    elif kind == "empty tiles":  # beside encoded ones
        write_tiff(path, pixels, levels=2, compression="jpeg")
        patch_tag(path, 325, 0, page=1)
    else:
        write_tiff(path, pixels, levels=2, compression=kind)
    with data.open_slide(path) as slide:
        level = len(slide.levels) - 1
        regions = data.grid(slide, 48, level=level, overlap=5)  # the last ones reach beyond the slide
        batches_equal_regions(slide, regions)
        assert len(regions) > 6
