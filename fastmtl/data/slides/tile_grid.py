"""How a level of a slide is cut into tiles, and which regions share one that is much larger than they are."""

from __future__ import annotations

from typing import NamedTuple

from ..dataset import Region
from .orientation import Box, stored_box
from .raster import Raster

_LARGE_PIXELS = 2**22  # a tile of more is kept decoded whatever the region
_MANY = 4  # and one so many times as wide or high as the region


class TileGrid(NamedTuple):
    """The tiles of a level.

    Attributes:
        tile_width: pixels as stored; strips are tiles as wide as the level.
        tile_height: likewise.
        in_parts: they are parts of one JPEG; those below each other are decoded together, as many as a region needs.
        shown: (width, height) of the image, upright.
        orientation: TIFF's code.
        left: of the image in its level, pixels.
        top: likewise.
        downsample: of the level.
    """

    tile_width: int
    tile_height: int
    in_parts: bool
    shown: tuple[int, int]
    orientation: int
    left: int
    top: int
    downsample: float

    @classmethod
    def of(cls, raster: Raster, downsample: float = 1.0) -> TileGrid:
        left, top = (raster.placement.left, raster.placement.top) if raster.placement else (0, 0)
        return cls(
            raster.tile_width,
            raster.tile_height,
            raster.encoding.codec == "jpeg part",
            raster.shown_size,
            raster.encoding.orientation,
            left,
            top,
            downsample,
        )

    def keeps(self, size: tuple[int, int]) -> bool:
        """Whether tiles are worth keeping for the regions beside one of `size`, (width, height) as stored."""
        wide, high = self.tile_width, self.tile_height
        many = wide >= _MANY * size[0] or high >= _MANY * size[1]
        return not self.in_parts and (wide * high > _LARGE_PIXELS or many)

    def piece_of(self, region: Region) -> tuple[int, int] | None:
        """Row and column of the large tile around the region's centre, or of the strips that are as high as the region:
        equal for the regions that are best read one after another. None if tiles are not kept."""
        x, y = round(region.x / self.downsample) - self.left, round(region.y / self.downsample) - self.top
        box: Box = stored_box((x, y, region.width, region.height), self.shown, self.orientation)
        if not self.keeps(box[2:]):
            return None
        height, width = max(self.tile_height, box[3]), max(self.tile_width, box[2])
        return (box[1] + box[3] // 2) // height, (box[0] + box[2] // 2) // width
