"""One mask in every form that a data set may have it in, as a manifest of tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from _tiles import random_pixels, write_image
from PIL import Image

SIDE = 64


def shape(seed: int = 0) -> np.ndarray:
    """bool [64, 64]: a disc that touches no edge and fills about a fifth."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return (x - 30 - seed % 3) ** 2 + (y - 33) ** 2 < 16**2


def as_files(root: Path, masks: Sequence[np.ndarray], save: Callable[..., None] | None = None) -> Path:
    """PNG masks beside PNG tiles."""
    rows = []
    for number, mask in enumerate(masks):
        write_image(root / f"{number}.png", random_pixels(number, SIDE))
        path = root / f"{number}_mask.png"
        save(path, mask) if save else write_image(path, mask)
        rows.append(f"{number}.png,{path.name},{'AB'[number % 2]},p{number}")
    return _manifest(root, "image,mask,label,patient", rows)


def as_slides(root: Path, masks: Sequence[np.ndarray], levels: int = 1, **options) -> Path:
    """A slide of four tiles a mask, and a mask slide, tiled TIFF; `options` are tifffile's."""
    import tifffile

    rows = []
    tiles = {"tile": (16, 16), "metadata": None}
    for number, mask in enumerate(masks):
        slide = random_pixels(number, SIDE)
        tifffile.imwrite(root / f"{number}.tif", slide, photometric="rgb", **tiles)
        told = {"photometric": "rgb" if mask.ndim == 3 else "minisblack", "compression": "deflate", **tiles, **options}
        with tifffile.TiffWriter(root / f"{number}_mask.tif") as file:
            for level in range(levels):
                file.write(mask[:: 2**level, :: 2**level], subfiletype=int(level > 0), **told)
        rows.append(f"{number}.tif,{number}_mask.tif,{'AB'[number % 2]},p{number}")
    return _manifest(root, "slide,mask,label,patient", rows)


def as_image_of_slide(root: Path, masks: Sequence[np.ndarray], save: Callable[..., None] | None = None) -> Path:
    """A slide, and a PNG of its extent."""
    as_slides(root, masks)
    rows = []
    for number, mask in enumerate(masks):
        path = root / f"{number}_mask.png"
        save(path, mask) if save else write_image(path, mask)
        rows.append(f"{number}.tif,{path.name},{'AB'[number % 2]},p{number}")
    return _manifest(root, "slide,mask,label,patient", rows)


def as_array(root: Path, masks: Sequence[np.ndarray], scale: str = "") -> Path:
    """Rows of an HDF5 array."""
    import h5py

    with h5py.File(root / "masks.h5", "w") as file:
        file["masks"] = np.stack(masks)
    rows = []
    for number in range(len(masks)):
        write_image(root / f"{number}.png", random_pixels(number, SIDE))
        rows.append(f"{number}.png,masks.h5#masks/{number}{scale},{'AB'[number % 2]},p{number}")
    return _manifest(root, "image,mask,label,patient", rows)


def as_runs(root: Path, masks: Sequence[np.ndarray]) -> Path:
    """Run-length codes of what is not 0."""
    from fastmtl.data import encode_runs

    rows = []
    for number, mask in enumerate(masks):
        write_image(root / f"{number}.png", random_pixels(number, SIDE))
        rows.append(f"{number}.png,rle:{SIDE}x{SIDE}:{encode_runs(mask)},{'AB'[number % 2]},p{number}")
    return _manifest(root, "image,mask,label,patient", rows)


def as_polygons(root: Path, masks: Sequence[np.ndarray]) -> Path:
    """A square of class tumour over each tile, whatever the mask."""
    square = "[[[10,10],[40,10],[40,40],[10,40],[10,10]]]"
    rows = []
    for number in range(len(masks)):
        write_image(root / f"{number}.png", random_pixels(number, SIDE))
        feature = '{"type":"Feature","geometry":{"type":"Polygon","coordinates":%s},"properties":{"class":"tumour"}}'
        (root / f"{number}.geojson").write_text(feature % square)
        rows.append(f"{number}.png,{number}.geojson,{'AB'[number % 2]},p{number}")
    return _manifest(root, "image,mask,label,patient", rows)


def as_palette(path: Path, mask: np.ndarray) -> None:
    image = Image.fromarray(mask, "L").convert("P")
    image.save(path)


def in_alpha(path: Path, mask: np.ndarray) -> None:
    """Black everywhere; the structure is what is opaque."""
    Image.merge("LA", [Image.new("L", mask.shape[::-1]), Image.fromarray(mask)]).save(path)


def _manifest(root: Path, head: str, rows: Sequence[str]) -> Path:
    path = root / "manifest.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    return path
