"""Tiles and slides to training batches: indexing, checking, splitting, augmenting, loading, and a demo data set.

Nothing here imports DALI, Pillow or scikit-learn before it is used; a missing one is named with its pip command.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .augment import Augmentation
    from .check import DamagedTilesError, check_tiles, usable_tiles
    from .dataset import Dataset, Drawn, Problem, Region, Tile
    from .faults import TileReadError
    from .loader import TileLoader
    from .slides.errors import DamagedPieceError, SlideError
    from .slides.grid import grid
    from .slides.index import SlideIndex
    from .slides.indexing import index_slide
    from .slides.pieces import Piece
    from .slides.raster import Level
    from .slides.slide import Slide, open_slide
    from .slides.tissue_mask import TissueMask
    from .splits import (
        Split,
        check_no_leak,
        grouped_split,
        kfold,
        load_groups,
        load_split,
        save_split,
        split_by_groups,
    )
    from .synthetic import generate
    from .tiles import IMAGE_SUFFIXES, group_of, read_tile_folder

_HOME = {
    "Augmentation": "augment",
    "DamagedTilesError": "check",
    "check_tiles": "check",
    "usable_tiles": "check",
    "Dataset": "dataset",
    "Drawn": "dataset",
    "Problem": "dataset",
    "Region": "dataset",
    "Tile": "dataset",
    "TileLoader": "loader",
    "DamagedPieceError": "slides.errors",
    "SlideError": "slides.errors",
    "grid": "slides.grid",
    "SlideIndex": "slides.index",
    "index_slide": "slides.indexing",
    "Piece": "slides.pieces",
    "Level": "slides.raster",
    "Slide": "slides.slide",
    "open_slide": "slides.slide",
    "TissueMask": "slides.tissue_mask",
    "TileReadError": "faults",
    "Split": "splits",
    "check_no_leak": "splits",
    "grouped_split": "splits",
    "kfold": "splits",
    "load_groups": "splits",
    "load_split": "splits",
    "save_split": "splits",
    "split_by_groups": "splits",
    "generate": "synthetic",
    "IMAGE_SUFFIXES": "tiles",
    "group_of": "tiles",
    "read_tile_folder": "tiles",
}

__all__ = [
    "IMAGE_SUFFIXES",
    "Augmentation",
    "DamagedPieceError",
    "DamagedTilesError",
    "Dataset",
    "Drawn",
    "Level",
    "Piece",
    "Problem",
    "Region",
    "Slide",
    "SlideError",
    "SlideIndex",
    "Split",
    "Tile",
    "TileLoader",
    "TileReadError",
    "TissueMask",
    "check_no_leak",
    "check_tiles",
    "generate",
    "grid",
    "group_of",
    "grouped_split",
    "index_slide",
    "kfold",
    "load_groups",
    "load_split",
    "open_slide",
    "read_tile_folder",
    "save_split",
    "split_by_groups",
    "usable_tiles",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastmtl.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
