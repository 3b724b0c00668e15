"""Regions of slides through the loader: the pixels that `read_region` gives."""

import numpy as np
import pytest
from helpers.slides import patch_tag, tissue_like, write_jpeg_with_tables, write_tiff
from helpers.tiles import raw_loader
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
        tiles = [data.Tile(f"{number:03d}", region, None, 0, "P") for number, region in enumerate(regions)]
        loader = raw_loader(
            tiles, targets={"classification": "label"}, size=48, augmentation=data.Augmentation.none(), shuffle=False
        )
        seen = 0
        for batch in loader:
            for name, image in zip(batch.ids, batch.images, strict=True):
                region = regions[int(name)]
                expected = slide.read_region(region.x, region.y, region.width, region.height, region.level)
                assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() <= 2
                seen += 1
        assert seen == len(regions) > 6
