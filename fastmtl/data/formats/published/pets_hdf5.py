"""Pets as the UNet-multi authors stored them: HDF5 arrays of images, masks, boxes and species, split in three."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...dataset import Dataset, Tile
from ...images.arrays import ArrayRow
from ...images.hdf5 import open_array
from ...sizes import check_pixels
from ._files import assemble, require_path
from .pets import SPECIES, centred

LAYOUT = "{train,val,test}/{images,masks,bboxes,binary}.h5, each with an array of its own name"
_SPLITS = ("train", "val", "test")
_MAX_IMAGES = 2**20  # an array of any length takes no room in a file until it is written
_LOOKED_AT = 20  # images, for their range of values
_SHAPES: dict[str, tuple[str, Callable[[tuple[int, ...]], bool]]] = {
    "images": ("[N, H, W, 3]", lambda shape: len(shape) == 4 and shape[3] == 3),
    "masks": ("[N, H, W, 1] or [N, H, W]", lambda shape: len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)),
    "bboxes": ("[N, 4]", lambda shape: len(shape) == 2 and shape[1] == 4),
    "binary": ("[N, 1] or [N]", lambda shape: len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)),
}


def looks_like(root: Path) -> bool:
    """Whether `root` has the layout of this data set."""
    return (root / "train" / "images.h5").is_file()


def read(root: Path) -> Dataset:
    """The images with masks, the species (the label), the head's `box` and the authors' `split`.

    Images are [N, H, W, 3] and masks [N, H, W, 1] of 0..255 or 0..1. Boxes are stored as left, top, right, bottom in
    pixels, or in 0..1; here they are centre x, centre y, width, height in 0..1.

    Raises:
        FileNotFoundError, ValueError: a file is missing or unreadable, or arrays differ in length.
    """
    tiles = [tile for split in _SPLITS if (root / split).is_dir() for tile in _read_split(root, split)]
    return assemble(root, SPECIES, tiles, (), LAYOUT)


def _read_split(root: Path, split: str) -> list[Tile]:
    files = {
        name: require_path(root / split / f"{name}.h5", LAYOUT) for name in ("images", "masks", "bboxes", "binary")
    }
    lengths, scales, small = {}, {}, {}
    height = width = 1
    for name, file in files.items():
        with _opened(file, name) as array:
            lengths[name] = len(array)
            if name == "images":
                height, width = array.shape[1:3]
            if name in ("bboxes", "binary"):
                small[name] = array[:]
                continue
            if array.shape[1:3] != (height, width):
                raise ValueError(f"{file}: masks {list(array.shape)} are not of the images' {height}x{width} pixels")
            # Fractions and 0/1 masks become 0..255; one image alone may be all black.
            looked_at = range(0, len(array), len(array) // _LOOKED_AT + 1)
            scales[name] = 255.0 if max((np.max(array[row]) for row in looked_at), default=2) <= 1 else 1.0
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{root / split} has arrays of different lengths: {lengths}")
    boxes, species = small["bboxes"].astype(np.float64), small["binary"]
    if boxes.size and boxes.max() > 1:
        boxes = boxes / (width, height, width, height)
    slack = 1 / min(height, width)  # a pixel, for boxes that were rounded outwards
    inside = ((boxes >= -slack) & (boxes <= 1 + slack)).all(1)
    if not inside.all():
        wrong = int(np.flatnonzero(~inside)[0])
        raise ValueError(f"{files['bboxes']}: box {wrong} is not inside its image of {height}x{width} pixels")
    if not np.isin(species, range(len(SPECIES))).all():
        raise ValueError(f"{files['binary']}: expected 0 and 1; got {np.unique(species)[:4].tolist()} ...")
    labels = species.astype(int).reshape(-1)
    return [
        Tile(
            f"{split}/{row:05d}",
            ArrayRow(files["images"], "images", row, scales["images"]),
            ArrayRow(files["masks"], "masks", row, scales["masks"]),
            int(labels[row]),
            f"{split}/{row:05d}".upper(),
            {"box": _box(boxes[row].clip(0, 1)), "split": split},
        )
        for row in range(lengths["images"])
    ]


def _box(edges: np.ndarray) -> tuple[float, float, float, float] | None:
    left, top, right, bottom = edges.tolist()
    if not (left < right and top < bottom):
        return None  # no head was found
    return centred(left, top, right, bottom)


@contextmanager
def _opened(file: Path, name: str) -> Iterator[Any]:
    """The array with this name, checked for its shape in this data set."""
    with open_array(file, name) as array:
        words, fits = _SHAPES[name]
        if not fits(array.shape):
            raise ValueError(f"{file}: {name} must be numbers {words}; got {array.dtype} {list(array.shape)}")
        if len(array) > _MAX_IMAGES:
            raise ValueError(f"{file}: {name} {list(array.shape)} declares more than {_MAX_IMAGES:,} images")
        try:
            check_pixels(*(*array.shape[1:3], 1, 1)[:2])
        except ValueError as error:
            raise ValueError(f"{file}: {name} {error}") from None
        yield array
