"""Read images without decoding them: whole files, the compressed tiles of a slide region, or drawn pixels."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..dataset import ImageSource, Region, Tile
from ..images.pictures import decode_image, file_of, read_encoded
from ..images.png import SIGNATURE, decode_png, png_size
from ..sizes import check_pixels
from ..slides import jpeg
from ..slides.encoded_tiles import EncodedTile
from ..slides.opened import opened
from ..slides.tile_grid import TileGrid

_JPEG = b"\xff\xd8\xff"


class OpenSlide(Protocol):
    """The interface of an open slide that reading needs."""

    def encoded_tiles(self, region: Region) -> list[EncodedTile]: ...


class Mosaic(NamedTuple):
    """One image, not yet decoded: its tiles, and (width, height) of the region they cover, None for a whole file."""

    tiles: Sequence[EncodedTile]
    size: tuple[int, int] | None = None


class EncodedImages:
    """Reads image sources as mosaics of encoded tiles. Thread-safe.

    Args:
        open_slide: returns the open slide at a path, `opened` by default.
        decode_png: decode PNG files here where `decode_png` can: on a CPU that takes half of DALI's time; with a GPU,
            DALI decodes them while the host continues.
    """

    def __init__(self, open_slide: Callable[[Path], OpenSlide] = opened, *, decode_png: bool = True):
        self._open_slide, self._decode_png = open_slide, decode_png
        self._grids: dict[tuple[Path, int], TileGrid | None] = {}

    def read(self, picture: ImageSource, channels: int) -> Mosaic:
        """The encoded tiles of `picture`.

        Args:
            picture: what to read.
            channels: 1 or 3, the channels that DALI decodes to; tiles given as pixels may have others.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file is empty, or a drawing is not an image; slides raise their own errors.
        """
        if isinstance(picture, Path):
            return Mosaic([_whole(picture, channels if self._decode_png else 0)])
        if isinstance(picture, Region):
            return Mosaic(self._open_slide(picture.slide).encoded_tiles(picture), (picture.width, picture.height))
        drawn = np.asarray(picture.draw())
        if drawn.dtype != np.uint8 or drawn.ndim not in (2, 3) or not drawn.size:
            raise ValueError(f"a drawn picture must be uint8 [h, w] or [h, w, C]; got {drawn.dtype} {drawn.shape}")
        return Mosaic([_of_pixels(drawn)])

    def pieces_of(self, tiles: Sequence[Tile]) -> list[Hashable | None]:
        """For each tile the large stored tile, or the strips, that its image is read from, see `TileGrid.piece_of`;
        None for other images. Each slide is opened once.

        Raises:
            UnreadableSlideError: a slide cannot be opened: ranks that cannot read it would have another order.
        """
        return [self._piece_of(tile.image) if isinstance(tile.image, Region) else None for tile in tiles]

    def _piece_of(self, region: Region) -> Hashable | None:
        key = region.slide, region.level
        if key not in self._grids:
            grid_of: Callable[[int], TileGrid | None] | None
            grid_of = getattr(self._open_slide(region.slide), "tile_grid", None)  # slides of other readers lack it
            self._grids[key] = grid_of and grid_of(region.level)
        grid = self._grids[key]
        piece = grid and grid.piece_of(region)
        return piece and (*key, *piece)


def _whole(path: Path, png_channels: int) -> EncodedTile:
    """An image file; a PNG as pixels of `png_channels` (0: left to DALI).

    DALI's fallback decoders return an image for damaged JPEG and TIFF files without an error, and allocate memory for
    any size that a file declares: so JPEG streams are checked, and all formats but JPEG and PNG are decoded here.
    """
    try:
        data = read_encoded(path)
        if data.startswith(_JPEG):
            check_pixels(*jpeg.check_file(data)[:2])
        elif data.startswith(SIGNATURE):
            check_pixels(*png_size(data))
            if png_channels and (pixels := decode_png(data, png_channels)) is not None:
                return _of_pixels(pixels)
        else:
            return _of_pixels(decode_image(data))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return EncodedTile(data=np.frombuffer(data, np.uint8))


def _of_pixels(pixels: NDArray[np.uint8]) -> EncodedTile:
    whole = np.ascontiguousarray(pixels if pixels.ndim == 3 else pixels[:, :, None])
    return EncodedTile(pixels=whole, width=whole.shape[1], height=whole.shape[0])


def place_of(picture: ImageSource | None) -> dict[str, Any]:
    """The origin of an image, in JSON types: its file, for a region also its position; for a drawing without a file its
    text."""
    if isinstance(picture, Region):
        place = {name: getattr(picture, name) for name in ("x", "y", "width", "height", "level")}
        return {"file": str(picture.slide), **place}
    own = Path() if picture is None else file_of(picture)
    return {"file": str(picture if own == Path() else own)}
