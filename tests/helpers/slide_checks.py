"""What the tests of each slide format check: against OpenSlide, and through the loader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmtl import data
from fastmtl.data.slides import scan
from helpers.tiles import raw_loader


def describes_as_openslide(slide: data.Slide, other: Any) -> None:
    """The same scanner, levels, scale and associated images as `other`, an openslide.OpenSlide."""
    assert slide.vendor == other.properties["openslide.vendor"]
    assert [(one.width, one.height) for one in slide.levels] == list(other.level_dimensions)
    assert [one.downsample for one in slide.levels] == pytest.approx(other.level_downsamples)
    assert slide.mpp == pytest.approx(float(other.properties["openslide.mpp-x"]))
    assert slide.magnification == float(other.properties["openslide.objective-power"])
    assert sorted(slide.associated_names) == sorted(other.associated_images)
    for name in slide.associated_names:
        np.testing.assert_array_equal(slide.associated(name), np.asarray(other.associated_images[name])[..., :3])


def regions_equal_openslide(slide: data.Slide, other: Any, rng: np.random.Generator, count: int, most: int) -> int:
    """`count` regions of at most `most` pixels a side in each level, at random places in the slide's bounds and a
    little outside: 240 where OpenSlide has nothing, else its pixels. Returns how many pixels it has."""
    drawn = 0
    for number, level in enumerate(slide.levels):
        first = [int(at / level.downsample) for at in slide.bounds[:2]]
        size = [int(side / level.downsample) for side in slide.bounds[2:]]
        for _ in range(count):
            x, y = (at + int(rng.integers(-40, side)) for at, side in zip(first, size, strict=True))
            width, height = (int(side) for side in rng.integers(1, most, 2))
            place = round(x * level.downsample), round(y * level.downsample)
            expected = np.asarray(other.read_region(place, number, (width, height)))
            found = slide.read_region(*place, width, height, number)
            inside = expected[..., 3] > 0
            drawn += int(inside.sum())
            assert (found[~inside] == 240).all()
            np.testing.assert_array_equal(found[inside], expected[inside][:, :3])
    return drawn


def is_left_to_openslide(path: Path, reason: str) -> None:
    """The slide is not read here for `reason`: OpenSlide reads it, or it is refused."""
    openslide = pytest.importorskip("openslide")
    with pytest.raises(scan.NotHereError, match=reason):
        scan.scan_tiff(path, scan.MAX_PIXELS)
    try:
        openslide.OpenSlide(path).close()
    except openslide.OpenSlideError:
        with pytest.raises(data.SlideError, match="OpenSlide cannot open it"):
            data.open_slide(path)
    else:
        assert data.index_slide(path).layout.reader == "openslide"


def batches_equal_regions(slide: data.Slide, regions: Sequence[data.Region]) -> None:
    """The loader's images of `regions`, 48x48 pixels, are what `read_region` gives, up to 2 of 255 levels."""
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
    assert seen == len(regions) > 0
