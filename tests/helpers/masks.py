"""One mask in every form that a data set may have it in, as a manifest of tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fastmtl import data, tasks
from fastmtl.builders import datasets
from helpers.tiles import random_pixels, write_image

SIDE = 64


def shape(seed: int = 0) -> np.ndarray:
    """bool [64, 64]: a disc that touches no edge and fills about a fifth."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return (x - 30 - seed % 3) ** 2 + (y - 33) ** 2 < 16**2


def as_files(root: Path, masks: Sequence[np.ndarray], save: Callable[..., None] | None = None) -> Path:
    """PNG masks beside PNG tiles."""
    return _over_images(root, _saved(root, masks, save))


def as_slides(root: Path, masks: Sequence[np.ndarray], levels: int = 1, **options) -> Path:
    """A slide of four tiles a mask, and a mask slide, tiled TIFF; `options` are tifffile's."""
    import tifffile

    tiles = {"tile": (16, 16), "metadata": None}
    for number, mask in enumerate(masks):
        slide = random_pixels(number, SIDE)
        tifffile.imwrite(root / f"{number}.tif", slide, photometric="rgb", **tiles)
        given = {"photometric": "rgb" if mask.ndim == 3 else "minisblack", "compression": "deflate", **tiles, **options}
        with tifffile.TiffWriter(root / f"{number}_mask.tif") as file:
            for level in range(levels):
                file.write(mask[:: 2**level, :: 2**level], subfiletype=int(level > 0), **given)
    return _manifest(root, "slide", "tif", [f"{number}_mask.tif" for number in range(len(masks))])


def as_image_of_slide(root: Path, masks: Sequence[np.ndarray], save: Callable[..., None] | None = None) -> Path:
    """A slide, and a PNG of its extent."""
    as_slides(root, masks)
    return _manifest(root, "slide", "tif", _saved(root, masks, save))


def as_array(root: Path, masks: Sequence[np.ndarray], scale: str = "") -> Path:
    """Rows of an HDF5 array."""
    import h5py

    with h5py.File(root / "masks.h5", "w") as file:
        file["masks"] = np.stack(masks)
    return _over_images(root, [f"masks.h5#masks/{number}{scale}" for number in range(len(masks))])


def as_runs(root: Path, masks: Sequence[np.ndarray]) -> Path:
    """Run-length codes of what is not 0."""
    from fastmtl.data import encode_runs

    return _over_images(root, [f"rle:{SIDE}x{SIDE}:{encode_runs(mask)}" for mask in masks])


def as_polygons(root: Path, masks: Sequence[np.ndarray]) -> Path:
    """A square of class tumour over each tile, whatever the mask."""
    square = "[[[10,10],[40,10],[40,40],[10,40],[10,10]]]"
    feature = '{"type":"Feature","geometry":{"type":"Polygon","coordinates":%s},"properties":{"class":"tumour"}}'
    for number in range(len(masks)):
        (root / f"{number}.geojson").write_text(feature % square)
    return _over_images(root, [f"{number}.geojson" for number in range(len(masks))])


def as_palette(path: Path, mask: np.ndarray) -> None:
    image = Image.fromarray(mask, "L").convert("P")
    image.save(path)


def in_alpha(path: Path, mask: np.ndarray) -> None:
    """Black everywhere; the structure is what is opaque."""
    Image.merge("LA", [Image.new("L", mask.shape[::-1]), Image.fromarray(mask)]).save(path)


def _saved(root: Path, masks: Sequence[np.ndarray], save: Callable[..., None] | None) -> list[str]:
    """The names of PNG files."""
    names = [f"{number}_mask.png" for number in range(len(masks))]
    for name, mask in zip(names, masks, strict=True):
        (save or write_image)(root / name, mask)
    return names


def _over_images(root: Path, masks: Sequence[str]) -> Path:
    """A tile for each of these cells."""
    for number in range(len(masks)):
        write_image(root / f"{number}.png", random_pixels(number, SIDE))
    return _manifest(root, "image", "png", masks)


def _manifest(root: Path, column: str, suffix: str, masks: Sequence[str]) -> Path:
    path = root / "manifest.csv"
    rows = [f"{number}.{suffix},{mask},{'AB'[number % 2]},p{number}" for number, mask in enumerate(masks)]
    path.write_text("\n".join([f"{column},mask,label,patient", *rows]) + "\n")
    return path


SOURCES = {"files": as_files, "slides": as_slides, "image of a slide": as_image_of_slide, "array": as_array}
GRID = data.GridOptions(tile_size=32, min_tissue=0.0)
CLASSES = {"structures": ["background", "gland", "tumour"]}


def looked_at(manifest: Path, kind: str = "binary_segmentation", polygons=(), **options) -> list[str]:
    """The notices of masks that are accepted; what training asks before it begins, without the training."""
    settings = data.ManifestOptions(grid=GRID, polygons=data.PolygonOptions(tuple(polygons)))
    found, _ = data.usable_tiles(data.read_manifest(manifest, settings))
    task = tasks.create_task(kind, "it", 0, **options)
    datasets.check_targets([task], found)
    return [str(problem) for problem in datasets.check_maps([task], [found], train=found)]


def discs(value: int, count: int = 4) -> list[np.ndarray]:
    return [shape(number).astype(np.uint8) * np.uint8(value) for number in range(count)]


def with_ring(inner: int, outer: int) -> np.ndarray:
    """A disc of `inner` in a square of `outer`."""
    mask = np.zeros((64, 64), np.uint8)
    mask[5:60, 5:60] = outer
    mask[shape()] = inner
    return mask
