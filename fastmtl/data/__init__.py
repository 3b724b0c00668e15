"""Tiles, slides and manifests to training batches: indexing, checking, splitting, augmenting, loading, and demo data.

Nothing here imports DALI, Pillow or scikit-learn before it is used; a missing one is named with its pip command.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arrays import PREPROCESSING, ArrayRow, GreyPicture
    from .augment import Augmentation
    from .cells import PolygonOptions
    from .check import DamagedTilesError, check_tiles, usable_tiles
    from .dataset import Dataset, Drawn, Picture, Problem, Region, Tile, kind_of, label_of
    from .duplicates import duplicate_notices
    from .examination import examine
    from .examined_slides import scale_notices
    from .faults import TileReadError
    from .folder import PREDICTED_WITH, without_predictions
    from .formats import detect_format, list_formats, read_dataset, register_format
    from .groups import with_groups
    from .identifiers import identifier_key
    from .loader import TileLoader
    from .manifest import ManifestOptions, read_manifest
    from .manifest_writing import write_manifest
    from .map_values import constant_maps, judge_maps, wrong_maps
    from .mask_facts import MaskFacts, count_mask
    from .masks_of_tiles import SeenMask, seen_masks
    from .outlines import check_outlines, write_outlines
    from .patches import RandomPatches
    from .patients import patient_notices, summary_lines
    from .pictures import open_picture, picture_size
    from .polygons import Polygons, polygon_classes
    from .preparing import Prepared, prepare
    from .run_lengths import RunLengths, decode_runs, encode_runs
    from .samplers import slides_of
    from .slide_cut import SlideCut, cut_slide
    from .slide_files import SlideFiles, find_slides
    from .slide_map import SlideMap
    from .slide_rows import GridOptions, downsample_of
    from .slides.errors import DamagedPieceError, SlideError
    from .slides.grid import grid
    from .slides.index import SlideIndex, identify, use_index_folder
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
        load_test_groups,
        one_sided_classes,
        save_split,
        split_by_column,
        split_by_groups,
    )
    from .stain import StainNormalizer
    from .stain_cache import slide_statistics
    from .stain_files import StainFileError
    from .stain_graph import stain_numba_function
    from .stain_statistics import StainStatistics
    from .stain_targets import mosaic_target, standardize_luminosity
    from .synthetic import generate
    from .synthetic_slides import generate_slides
    from .tiles import IMAGE_SUFFIXES, group_of, read_tile_folder

_HOME = {
    "SlideCut": "slide_cut",
    "cut_slide": "slide_cut",
    "SlideFiles": "slide_files",
    "find_slides": "slide_files",
    "PREDICTED_WITH": "folder",
    "without_predictions": "folder",
    "identify": "slides.index",
    "SlideMap": "slide_map",
    "check_outlines": "outlines",
    "write_outlines": "outlines",
    "slides_of": "samplers",
    "ArrayRow": "arrays",
    "GreyPicture": "arrays",
    "PREPROCESSING": "arrays",
    "Augmentation": "augment",
    "PolygonOptions": "cells",
    "DamagedTilesError": "check",
    "check_tiles": "check",
    "usable_tiles": "check",
    "Dataset": "dataset",
    "Drawn": "dataset",
    "Picture": "dataset",
    "Problem": "dataset",
    "Region": "dataset",
    "Tile": "dataset",
    "duplicate_notices": "duplicates",
    "examine": "examination",
    "scale_notices": "examined_slides",
    "detect_format": "formats",
    "list_formats": "formats",
    "read_dataset": "formats",
    "register_format": "formats",
    "with_groups": "groups",
    "identifier_key": "identifiers",
    "TileLoader": "loader",
    "DamagedPieceError": "slides.errors",
    "SlideError": "slides.errors",
    "grid": "slides.grid",
    "SlideIndex": "slides.index",
    "use_index_folder": "slides.index",
    "index_slide": "slides.indexing",
    "Piece": "slides.pieces",
    "Level": "slides.raster",
    "Slide": "slides.slide",
    "open_slide": "slides.slide",
    "TissueMask": "slides.tissue_mask",
    "TileReadError": "faults",
    "ManifestOptions": "manifest",
    "constant_maps": "map_values",
    "judge_maps": "map_values",
    "wrong_maps": "map_values",
    "MaskFacts": "mask_facts",
    "SeenMask": "masks_of_tiles",
    "count_mask": "mask_facts",
    "seen_masks": "masks_of_tiles",
    "read_manifest": "manifest",
    "write_manifest": "manifest_writing",
    "RandomPatches": "patches",
    "patient_notices": "patients",
    "summary_lines": "patients",
    "open_picture": "pictures",
    "picture_size": "pictures",
    "Polygons": "polygons",
    "polygon_classes": "polygons",
    "Prepared": "preparing",
    "prepare": "preparing",
    "RunLengths": "run_lengths",
    "decode_runs": "run_lengths",
    "encode_runs": "run_lengths",
    "GridOptions": "slide_rows",
    "downsample_of": "slide_rows",
    "Split": "splits",
    "check_no_leak": "splits",
    "grouped_split": "splits",
    "kfold": "splits",
    "kind_of": "dataset",
    "label_of": "dataset",
    "load_groups": "splits",
    "load_split": "splits",
    "load_test_groups": "splits",
    "one_sided_classes": "splits",
    "save_split": "splits",
    "split_by_column": "splits",
    "split_by_groups": "splits",
    "StainNormalizer": "stain",
    "StainFileError": "stain_files",
    "StainStatistics": "stain_statistics",
    "slide_statistics": "stain_cache",
    "stain_numba_function": "stain_graph",
    "mosaic_target": "stain_targets",
    "standardize_luminosity": "stain_targets",
    "generate": "synthetic",
    "generate_slides": "synthetic_slides",
    "IMAGE_SUFFIXES": "tiles",
    "group_of": "tiles",
    "read_tile_folder": "tiles",
}

__all__ = [
    "IMAGE_SUFFIXES",
    "PREDICTED_WITH",
    "PREPROCESSING",
    "ArrayRow",
    "Augmentation",
    "DamagedPieceError",
    "DamagedTilesError",
    "Dataset",
    "Drawn",
    "GreyPicture",
    "GridOptions",
    "Level",
    "ManifestOptions",
    "MaskFacts",
    "Picture",
    "Piece",
    "PolygonOptions",
    "Polygons",
    "Prepared",
    "Problem",
    "RandomPatches",
    "Region",
    "RunLengths",
    "SeenMask",
    "Slide",
    "SlideCut",
    "SlideError",
    "SlideFiles",
    "SlideIndex",
    "SlideMap",
    "Split",
    "StainFileError",
    "StainNormalizer",
    "StainStatistics",
    "Tile",
    "TileLoader",
    "TileReadError",
    "TissueMask",
    "check_no_leak",
    "check_outlines",
    "check_tiles",
    "constant_maps",
    "count_mask",
    "cut_slide",
    "decode_runs",
    "detect_format",
    "downsample_of",
    "duplicate_notices",
    "encode_runs",
    "examine",
    "find_slides",
    "generate",
    "generate_slides",
    "grid",
    "group_of",
    "grouped_split",
    "identifier_key",
    "identify",
    "index_slide",
    "judge_maps",
    "kfold",
    "kind_of",
    "label_of",
    "list_formats",
    "load_groups",
    "load_split",
    "load_test_groups",
    "mosaic_target",
    "one_sided_classes",
    "open_picture",
    "open_slide",
    "patient_notices",
    "picture_size",
    "polygon_classes",
    "prepare",
    "read_dataset",
    "read_manifest",
    "read_tile_folder",
    "register_format",
    "save_split",
    "scale_notices",
    "seen_masks",
    "slide_statistics",
    "slides_of",
    "split_by_column",
    "split_by_groups",
    "stain_numba_function",
    "standardize_luminosity",
    "summary_lines",
    "usable_tiles",
    "use_index_folder",
    "with_groups",
    "without_predictions",
    "write_manifest",
    "write_outlines",
    "wrong_maps",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastmtl.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
