"""Tiles, slides and manifests to training batches: indexing, checking, splitting, augmenting, loading, and demo data.

Nothing here imports DALI, Pillow or scikit-learn before it is used; a missing one is named with its pip command.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..utils.deprecation import warn_renamed

if TYPE_CHECKING:
    from .checks.duplicates import duplicate_notices
    from .checks.files import DamagedTilesError, check_tiles, usable_tiles
    from .checks.inspect import examine
    from .checks.mask_facts import MaskFacts, count_mask
    from .checks.masks_of_tiles import SeenMask, seen_masks
    from .checks.prepare import Prepared, prepare
    from .checks.slides import scale_notices
    from .checks.target_maps import constant_maps, judge_maps, wrong_maps
    from .dataset import Dataset, Drawn, ImageSource, Problem, Region, Tile, kind_of, label_of
    from .formats.folder import PREDICTED_WITH, without_predictions
    from .formats.registry import detect_format, list_formats, read_dataset, register_format
    from .formats.slide_files import SlideFiles, find_slides
    from .formats.tile_folder import IMAGE_SUFFIXES, group_of, read_tile_folder
    from .identifiers import identifier_key
    from .images.arrays import PREPROCESSING, ArrayRow, GreyPicture
    from .images.pictures import open_picture, picture_size
    from .images.polygons import Polygons, polygon_classes
    from .images.run_lengths import RunLengths, decode_runs, encode_runs
    from .loading.augment import Augmentation
    from .loading.loader import TileLoader
    from .loading.patches import RandomPatches
    from .loading.quarantine import TileReadError
    from .loading.samplers import slides_of
    from .manifest.patients import patient_notices, summary_lines
    from .manifest.picture_refs import PolygonOptions
    from .manifest.reading import ManifestOptions, read_manifest
    from .manifest.slide_rows import GridOptions, downsample_of
    from .manifest.writing import write_manifest
    from .slide_output.outlines import check_outlines, write_outlines
    from .slide_output.slide_cut import SlideCut, cut_slide
    from .slide_output.slide_map import SlideMap
    from .slides.encoded_tiles import EncodedTile
    from .slides.errors import DamagedPieceError, SlideError
    from .slides.grid import grid
    from .slides.index import SlideIndex, identify, use_index_folder
    from .slides.indexing import index_slide
    from .slides.raster import Level
    from .slides.slide import Slide, open_slide
    from .slides.tissue_mask import TissueMask
    from .splits.groups import with_groups
    from .splits.splitting import (
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
    from .stain.cache import slide_statistics
    from .stain.files import StainFileError
    from .stain.normalizer import StainNormalizer
    from .stain.statistics import StainStatistics
    from .stain.targets import mosaic_target, standardize_luminosity
    from .synthetic.slides import generate_slides
    from .synthetic.tiles import generate

_HOME = {
    "SlideCut": "slide_output.slide_cut",
    "cut_slide": "slide_output.slide_cut",
    "SlideFiles": "formats.slide_files",
    "find_slides": "formats.slide_files",
    "PREDICTED_WITH": "formats.folder",
    "without_predictions": "formats.folder",
    "identify": "slides.index",
    "SlideMap": "slide_output.slide_map",
    "check_outlines": "slide_output.outlines",
    "write_outlines": "slide_output.outlines",
    "slides_of": "loading.samplers",
    "ArrayRow": "images.arrays",
    "GreyPicture": "images.arrays",
    "PREPROCESSING": "images.arrays",
    "Augmentation": "loading.augment",
    "PolygonOptions": "manifest.picture_refs",
    "DamagedTilesError": "checks.files",
    "check_tiles": "checks.files",
    "usable_tiles": "checks.files",
    "Dataset": "dataset",
    "Drawn": "dataset",
    "ImageSource": "dataset",
    "Problem": "dataset",
    "Region": "dataset",
    "Tile": "dataset",
    "duplicate_notices": "checks.duplicates",
    "examine": "checks.inspect",
    "scale_notices": "checks.slides",
    "detect_format": "formats.registry",
    "list_formats": "formats.registry",
    "read_dataset": "formats.registry",
    "register_format": "formats.registry",
    "with_groups": "splits.groups",
    "identifier_key": "identifiers",
    "TileLoader": "loading.loader",
    "DamagedPieceError": "slides.errors",
    "SlideError": "slides.errors",
    "grid": "slides.grid",
    "SlideIndex": "slides.index",
    "use_index_folder": "slides.index",
    "index_slide": "slides.indexing",
    "EncodedTile": "slides.encoded_tiles",
    "Level": "slides.raster",
    "Slide": "slides.slide",
    "open_slide": "slides.slide",
    "TissueMask": "slides.tissue_mask",
    "TileReadError": "loading.quarantine",
    "ManifestOptions": "manifest.reading",
    "constant_maps": "checks.target_maps",
    "judge_maps": "checks.target_maps",
    "wrong_maps": "checks.target_maps",
    "MaskFacts": "checks.mask_facts",
    "SeenMask": "checks.masks_of_tiles",
    "count_mask": "checks.mask_facts",
    "seen_masks": "checks.masks_of_tiles",
    "read_manifest": "manifest.reading",
    "write_manifest": "manifest.writing",
    "RandomPatches": "loading.patches",
    "patient_notices": "manifest.patients",
    "summary_lines": "manifest.patients",
    "open_picture": "images.pictures",
    "picture_size": "images.pictures",
    "Polygons": "images.polygons",
    "polygon_classes": "images.polygons",
    "Prepared": "checks.prepare",
    "prepare": "checks.prepare",
    "RunLengths": "images.run_lengths",
    "decode_runs": "images.run_lengths",
    "encode_runs": "images.run_lengths",
    "GridOptions": "manifest.slide_rows",
    "downsample_of": "manifest.slide_rows",
    "Split": "splits.splitting",
    "check_no_leak": "splits.splitting",
    "grouped_split": "splits.splitting",
    "kfold": "splits.splitting",
    "kind_of": "dataset",
    "label_of": "dataset",
    "load_groups": "splits.splitting",
    "load_split": "splits.splitting",
    "load_test_groups": "splits.splitting",
    "one_sided_classes": "splits.splitting",
    "save_split": "splits.splitting",
    "split_by_column": "splits.splitting",
    "split_by_groups": "splits.splitting",
    "StainNormalizer": "stain.normalizer",
    "StainFileError": "stain.files",
    "StainStatistics": "stain.statistics",
    "slide_statistics": "stain.cache",
    "mosaic_target": "stain.targets",
    "standardize_luminosity": "stain.targets",
    "generate": "synthetic.tiles",
    "generate_slides": "synthetic.slides",
    "IMAGE_SUFFIXES": "formats.tile_folder",
    "group_of": "formats.tile_folder",
    "read_tile_folder": "formats.tile_folder",
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
    "EncodedTile",
    "GreyPicture",
    "GridOptions",
    "ImageSource",
    "Level",
    "ManifestOptions",
    "MaskFacts",
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


_RENAMED = {"Picture": "ImageSource", "Piece": "EncodedTile"}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warn_renamed(f"data.{name}", f"data.{_RENAMED[name]}")
        name = _RENAMED[name]
    if name not in _HOME:
        raise AttributeError(f"module 'fastmtl.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
