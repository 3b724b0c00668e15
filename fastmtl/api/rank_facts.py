"""What must be equal on all ranks of a training, as short texts: the code, the recipe and the data."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from .. import __version__, data
from ..builders.datasets import Splits
from ..config import Recipe, as_dict, dotted
from ..data.images.pictures import file_of


def of_code(recipe: Recipe) -> dict[str, str]:
    """The versions, a digest of fastmtl's own files, and every key of the recipe."""
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted([*package.rglob("*.py"), *package.glob("_C*.so")]):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    versions = {"fastmtl": f"{__version__} {digest.hexdigest()[:12]}", "torch": torch.__version__}
    return versions | {f"recipe {key} =": repr(value) for key, value in dotted(as_dict(recipe)).items()}


def of_data(splits: Splits) -> dict[str, str]:
    """The number of tiles of each side, and a digest of their names, labels and file sizes."""
    sides = {"training": splits.train, "held-out": splits.validation, "test": splits.test, "inner": splits.inner}
    return {f"{side} tiles": f"{len(part)} ({_digest(part)})" for side, part in sides.items()}


def _size_of_folder(slide: Path) -> int:
    """Bytes that identify a slide which is a folder; 0 for anything else."""
    try:
        return data.identify(slide).size if slide.is_dir() else 0
    except data.SlideError:
        return 0


def _digest(part: data.Dataset) -> str:
    digest, sizes = hashlib.sha256(), dict[Path, int]()
    for tile in part.tiles:
        digest.update(f"{tile.id}\0{tile.group}\0{tile.label}\0".encode())
        for picture in (tile.image, tile.mask):
            path = Path() if picture is None else file_of(picture)
            if path not in sizes:
                sizes[path] = path.stat().st_size if path.is_file() else _size_of_folder(path)
            digest.update(f"{sizes[path]}\0".encode())
    return digest.hexdigest()[:12]
