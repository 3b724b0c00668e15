"""From tiles, slides and manifests to training batches: index, check, split, augment, load; and demo data.

DALI, Pillow and scikit-learn are imported on first use; if one is missing, the error gives its pip command.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..utils.deprecation import warn_renamed

if TYPE_CHECKING:
    from .checks.checked_files import CheckedFiles
    from .checks.constant_maps import constant_maps
    from .checks.damaged_tiles import DamagedTilesError, check_tiles, usable_tiles
    from .checks.duplicates import duplicate_notices
    from .checks.examine import examine
    from .checks.judge_maps import judge_maps, wrong_maps
    from .checks.mask_facts import MaskFacts, count_mask
    from .checks.patients import patient_notices, summary_lines
    from .checks.prepare import Prepared, prepare
    from .checks.seen_masks import SeenMask, seen_masks
    from .checks.slide_report import scale_notices
    from .dataset import Dataset, Drawn, ImageSource, Problem, Region, Tile, kind_of, label_of
    from .formats.folder import PREDICTED_WITH, without_predictions
    from .formats.registry import detect_format, list_formats, read_dataset, register_format
    from .formats.slide_files import SlideFiles, find_slides
    from .formats.tile_folder import read_tile_folder
    from .identifiers import identifier_key
    from .images.arrays import PREPROCESSING, ArrayRow, GreyPicture
    from .images.pictures import IMAGE_SUFFIXES, open_picture, picture_size
    from .images.polygons import Polygons, polygon_classes
    from .images.run_lengths import RunLengths, decode_runs, encode_runs
    from .loading.augment import Augmentation
    from .loading.loader import TileLoader
    from .loading.patches import RandomPatches
    from .loading.quarantine import TileReadError
    from .loading.samplers import slides_of
    from .manifest.picture_refs import PolygonOptions
    from .manifest.reading import ManifestOptions, read_manifest
    from .manifest.writing import write_manifest
    from .patient_names import group_of
    from .slide_output.outlines import check_outlines, write_outlines
    from .slide_output.probability_map import ProbabilityMap
    from .slide_output.slide_cut import SlideCut, cut_slide
    from .slide_output.slide_map import SlideMap
    from .slide_output.traced import OutlineOptions
    from .slides.encoded_tiles import EncodedTile
    from .slides.errors import DamagedPieceError, SlideError
    from .slides.grid import GridOptions, grid
    from .slides.identity import identify
    from .slides.index import SlideIndex, use_index_folder
    from .slides.indexing import index_slide
    from .slides.opened import downsample_of
    from .slides.raster import Level
    from .slides.slide import Slide, open_slide
    from .slides.tissue_mask import TissueMask
    from .splits.drawn_splits import grouped_split, kfold, with_inner_share
    from .splits.groups import with_groups
    from .splits.sites import site_notices, with_sites
    from .splits.split import Split, check_no_leak, one_sided_classes, published_fold, split_by_column, split_by_groups
    from .splits.split_files import load_groups, load_inner_groups, load_split, load_test_groups, save_split
    from .stain.files import StainFileError
    from .stain.normalizer import StainNormalizer
    from .stain.slide_statistics import slide_statistics
    from .stain.statistics import StainStatistics
    from .stain.targets import mosaic_target, standardize_luminosity
    from .synthetic.slides import generate_slides
    from .synthetic.tiles import generate

_NAMES = {
    "checks.checked_files": "CheckedFiles",
    "checks.damaged_tiles": "DamagedTilesError check_tiles usable_tiles",
    "checks.duplicates": "duplicate_notices",
    "checks.examine": "examine",
    "checks.constant_maps": "constant_maps",
    "checks.judge_maps": "judge_maps wrong_maps",
    "checks.mask_facts": "MaskFacts count_mask",
    "checks.patients": "patient_notices summary_lines",
    "checks.prepare": "Prepared prepare",
    "checks.seen_masks": "SeenMask seen_masks",
    "checks.slide_report": "scale_notices",
    "dataset": "Dataset Drawn ImageSource Problem Region Tile kind_of label_of",
    "formats.folder": "PREDICTED_WITH without_predictions",
    "formats.registry": "detect_format list_formats read_dataset register_format",
    "formats.slide_files": "SlideFiles find_slides",
    "formats.tile_folder": "read_tile_folder",
    "identifiers": "identifier_key",
    "images.arrays": "ArrayRow GreyPicture PREPROCESSING",
    "images.pictures": "IMAGE_SUFFIXES open_picture picture_size",
    "images.polygons": "Polygons polygon_classes",
    "images.run_lengths": "RunLengths decode_runs encode_runs",
    "loading.augment": "Augmentation",
    "loading.loader": "TileLoader",
    "loading.patches": "RandomPatches",
    "loading.quarantine": "TileReadError",
    "loading.samplers": "slides_of",
    "manifest.picture_refs": "PolygonOptions",
    "manifest.reading": "ManifestOptions read_manifest",
    "manifest.writing": "write_manifest",
    "patient_names": "group_of",
    "slide_output.outlines": "check_outlines write_outlines",
    "slide_output.slide_cut": "SlideCut cut_slide",
    "slide_output.probability_map": "ProbabilityMap",
    "slide_output.slide_map": "SlideMap",
    "slide_output.traced": "OutlineOptions",
    "slides.errors": "DamagedPieceError SlideError",
    "slides.grid": "GridOptions grid",
    "slides.identity": "identify",
    "slides.index": "SlideIndex use_index_folder",
    "slides.indexing": "index_slide",
    "slides.opened": "downsample_of",
    "slides.encoded_tiles": "EncodedTile",
    "slides.raster": "Level",
    "slides.slide": "Slide open_slide",
    "slides.tissue_mask": "TissueMask",
    "splits.drawn_splits": "grouped_split kfold with_inner_share",
    "splits.groups": "with_groups",
    "splits.sites": "site_notices with_sites",
    "splits.split": "Split check_no_leak one_sided_classes published_fold split_by_column split_by_groups",
    "splits.split_files": "load_groups load_inner_groups load_split load_test_groups save_split",
    "stain.files": "StainFileError",
    "stain.normalizer": "StainNormalizer",
    "stain.slide_statistics": "slide_statistics",
    "stain.statistics": "StainStatistics",
    "stain.targets": "mosaic_target standardize_luminosity",
    "synthetic.slides": "generate_slides",
    "synthetic.tiles": "generate",
}
_MODULE = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "IMAGE_SUFFIXES", "PREDICTED_WITH", "PREPROCESSING", "ArrayRow", "Augmentation", "CheckedFiles",
    "DamagedPieceError", "DamagedTilesError", "Dataset", "Drawn", "EncodedTile", "GreyPicture", "GridOptions",
    "ImageSource", "Level", "ManifestOptions", "MaskFacts", "OutlineOptions", "PolygonOptions", "Polygons", "Prepared",
    "ProbabilityMap", "Problem", "RandomPatches", "Region", "RunLengths", "SeenMask", "Slide", "SlideCut",
    "SlideError", "SlideFiles", "SlideIndex", "SlideMap", "Split", "StainFileError", "StainNormalizer",
    "StainStatistics", "Tile", "TileLoader", "TileReadError", "TissueMask",
    "check_no_leak", "check_outlines", "check_tiles", "constant_maps", "count_mask", "cut_slide", "decode_runs",
    "detect_format", "downsample_of", "duplicate_notices", "encode_runs", "examine", "find_slides", "generate",
    "generate_slides", "grid", "group_of", "grouped_split", "identifier_key", "identify", "index_slide",
    "judge_maps", "kfold", "kind_of", "label_of", "list_formats", "load_groups", "load_inner_groups", "load_split",
    "load_test_groups", "mosaic_target", "one_sided_classes", "open_picture", "open_slide", "patient_notices",
    "picture_size", "polygon_classes", "prepare", "published_fold", "read_dataset", "read_manifest", "read_tile_folder",
    "register_format", "save_split", "scale_notices", "seen_masks", "site_notices", "slide_statistics", "slides_of",
    "split_by_column", "split_by_groups", "standardize_luminosity", "summary_lines", "usable_tiles",
    "use_index_folder", "with_groups", "with_inner_share", "with_sites",
    "without_predictions", "write_manifest", "write_outlines", "wrong_maps",
]  # fmt: skip


_RENAMED = {"Picture": "ImageSource", "Piece": "EncodedTile"}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warn_renamed(f"data.{name}", f"data.{_RENAMED[name]}")
        name = _RENAMED[name]
    if name not in _MODULE:
        raise AttributeError(f"module 'fastmtl.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
