"""Where the bytes of a picture are: one compressed piece of a file, several of a slide, or pixels that were drawn."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..dataset import ImageSource, Region
from ..images.pictures import decode_image, file_of, read_encoded
from ..images.png import SIGNATURE, decode_png, png_size
from ..sizes import check_pixels
from ..slides import jpeg
from ..slides.slide import open_slide
from ..slides.tiff import TIFF_SIGNATURES

_MAX_OPEN = 128
_JPEG = b"\xff\xd8\xff"


class EncodedTile(Protocol):
    """A part of a picture.

    Attributes:
        data: uint8 [n], an encoded image that stands alone, for DALI to decode; None where `pixels` are given.
        pixels: uint8 [height, width, C].
        x: left edge in the canvas; may be negative, and the piece may reach beyond the canvas.
        y: top edge, likewise.
        width: pixels that count, from the left of what is decoded; 0: all.
        height: likewise from the top.
    """

    @property
    def data(self) -> NDArray[np.uint8] | None: ...
    @property
    def pixels(self) -> NDArray[np.uint8] | None: ...
    @property
    def x(self) -> int: ...
    @property
    def y(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...


class Whole(NamedTuple):
    """The one piece of a picture that is not a slide's."""

    data: NDArray[np.uint8] | None = None
    pixels: NDArray[np.uint8] | None = None
    x: int = 0
    y: int = 0
    width: int = 0
    height: int = 0


class Mosaic(NamedTuple):
    """One picture, not yet decoded: its pieces, and (width, height) of the field they lie in, None for a whole file."""

    pieces: Sequence[EncodedTile]
    size: tuple[int, int] | None = None


class Pictures:
    """Finds the pieces of pictures; open slides are kept, the last used longest. Threads may share it.

    Args:
        open_slide: path -> an object whose `pieces(region)` gives the region's pieces; `data.open_slide` by default.
        decode_png: whether PNG files come as pixels, where `png` can: on a CPU that takes half of DALI's time, beside
            a GPU DALI does it while the host goes on.
    """

    def __init__(self, open_slide: Callable[[Path], Any] = open_slide, *, decode_png: bool = True):
        self._open_slide, self._decode_png = open_slide, decode_png
        self._slides: OrderedDict[Path, Any] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, picture: ImageSource, channels: int) -> Mosaic:
        """The picture's pieces.

        Args:
            picture: what to read.
            channels: to how many DALI decodes it, 1 or 3; pieces that come as pixels may have others.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file is empty, a region or what was drawn is no picture; slides raise their own errors.
        """
        if isinstance(picture, Path):
            return Mosaic([_whole(picture, channels if self._decode_png else 0)])
        if isinstance(picture, Region):
            return Mosaic(self._slide(picture.slide).pieces(picture), (picture.width, picture.height))
        drawn = np.asarray(picture.draw())
        if drawn.dtype != np.uint8 or drawn.ndim not in (2, 3) or not drawn.size:
            raise ValueError(f"a drawn picture must be uint8 [h, w] or [h, w, C]; got {drawn.dtype} {drawn.shape}")
        return Mosaic([_of_pixels(drawn)])

    def _slide(self, path: Path) -> Any:
        with self._lock:
            if path in self._slides:
                self._slides.move_to_end(path)
            else:
                self._slides[path] = self._open_slide(path)
                if len(self._slides) > _MAX_OPEN:
                    self._slides.popitem(last=False)  # closes when the last thread has let go of it
            return self._slides[path]


def _whole(path: Path, png_channels: int) -> Whole:
    """An image file; a PNG of `png_channels` as pixels. Decoders that DALI falls back on make pictures of damaged JPEG
    and TIFF files, without an error: JPEG streams are looked at, TIFF is decoded here."""
    try:
        data = read_encoded(path)
        if data.startswith(_JPEG):
            check_pixels(*jpeg.check_file(data)[:2])
        elif data.startswith(TIFF_SIGNATURES):
            return _of_pixels(decode_image(data))
        elif data.startswith(SIGNATURE):
            check_pixels(*png_size(data))
            if png_channels and (pixels := decode_png(data, png_channels)) is not None:
                return _of_pixels(pixels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Whole(np.frombuffer(data, np.uint8))


def _of_pixels(pixels: NDArray[np.uint8]) -> Whole:
    whole = np.ascontiguousarray(pixels if pixels.ndim == 3 else pixels[:, :, None])
    return Whole(pixels=whole, width=whole.shape[1], height=whole.shape[0])


def place_of(picture: ImageSource | None) -> dict[str, Any]:
    """Where a picture comes from, in JSON types, for lists of what was damaged: its file, and of a region its place;
    the text of what was drawn from no file."""
    if isinstance(picture, Region):
        place = {name: getattr(picture, name) for name in ("x", "y", "width", "height", "level")}
        return {"file": str(picture.slide), **place}
    own = Path() if picture is None else file_of(picture)
    return {"file": str(picture if own == Path() else own)}
