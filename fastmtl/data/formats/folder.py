"""Sort the files of a folder by name into images and slides, their masks, and others; tell plain images from slides.

A slide may be a folder: an OME-Zarr store, or the DICOM files of one series.

Masks are recognised by their place: NAME.geojson, NAME_mask.png (any image ending) beside the image, or NAME with any
such ending in a folder called mask, masks, label, labels or annotations next to it.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..identifiers import clean_name, tell_apart, unicode_form
from ..images.pictures import IMAGE_SUFFIXES
from ..images.polygons import POLYGON_SUFFIXES
from ..manifest.picture_refs import SLIDE_SUFFIXES
from ..slides.dicom.series import dicom_files, slides_in
from ..slides.ome_zarr.metadata import is_store
from ..slides.slide import Slide

PREDICTED_WITH = "predicted_with.json"
"""This file marks a folder of predictions, whose maps are not data."""

_MASK_FOLDERS = frozenset({"mask", "masks", "label", "labels", "annotations"})
_MASK_ENDS = ("_mask", "-mask", ".mask")
_OME = ".ome"  # of NAME.ome.tif and NAME.ome.zarr
_LIKE_MASK = re.compile(r"(.+)[_.-](?:masks?|msk|seg|segmentation|gt|labels?|labell?ed|annotations?)", re.IGNORECASE)
_LARGEST_TILE = 2048**2  # pixels; a larger TIFF of one level is cut into tiles like a slide


class Files(NamedTuple):
    """The files of a folder.

    Attributes:
        images: images and slides, sorted.
        masks: image -> its mask.
        others: number of other files by ending; of masks without an image, and linked folders.
        odd: image -> oddities of its name or masks.
    """

    images: list[Path]
    masks: dict[Path, Path]
    others: dict[str, int]
    odd: dict[Path, str]


def files_in(folder: Path) -> Files:
    """Search `folder`, except hidden files, linked folders and folders of predictions.

    Raises:
        ValueError: two files whose names differ only in their Unicode form.
    """
    images: dict[tuple[str, str], list[Path]] = {}
    masks: dict[tuple[str, str], list[Path]] = {}
    others: Counter[str] = Counter()
    forms: dict[str, Path] = {}
    for path in without_predictions(folder, sorted(_walk(folder))):
        inside = path.relative_to(folder)
        if path.is_symlink() and path.is_dir():
            others["linked folder"] += 1
            continue
        if (other := forms.setdefault(unicode_form(str(inside)), path)) != path:
            raise ValueError(f"{tell_apart(other, path)} both exist; rename or remove one")
        suffix = path.suffix.lower()
        if suffix == ".geojson" or (suffix in POLYGON_SUFFIXES | IMAGE_SUFFIXES and _is_mask(path)):
            home = path.parent.parent if path.parent.name.lower() in _MASK_FOLDERS else path.parent
            masks.setdefault((clean_name(str(home)), _bare(path)), []).append(path)
        elif suffix in IMAGE_SUFFIXES | SLIDE_SUFFIXES or path.is_dir():
            home = path.parent.parent if path.parent.name.lower() in ("image", "images") else path.parent
            images.setdefault((clean_name(str(home)), _bare(path)), []).append(path)
        else:
            others[suffix or path.name] += 1
    paired = {path: masks[key][-1] for key, paths in images.items() if key in masks for path in paths}
    others["mask without an image"] += sum(len(paths) for key, paths in masks.items() if key not in images)
    odd = {}
    for key, paths in images.items():
        of = _LIKE_MASK.fullmatch(key[1])
        for path in paths:
            if len(found := masks.get(key, ())) > 1:
                odd[path] = f"has {len(found)} masks, of which {found[-1]} is used; {found[0]} is ignored"
            elif of and (key[0], of[1]) in images:
                odd[path] = f"is taken for an image; if it is the mask of {of[1]}, call it {of[1]}_mask{path.suffix}"
    return Files(sorted(path for paths in images.values() for path in paths), paired, dict(+others), odd)


def _walk(folder: Path) -> Iterator[Path]:
    """The files in and below a folder, its linked folders, and slides that are folders or series of DICOM files in
    place of theirs. Without hidden ones."""
    for home, folders, names in os.walk(folder):
        here = Path(home)
        if is_store(here):
            folders.clear()
            yield here
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (here / name for name in folders if (here / name).is_symlink())
        files = [here / name for name in names if not name.startswith(".")]
        if any(_may_be_dicom(path) for path in files) and (parts := dicom_files(here)):
            slides = slides_in(here)
            # The folder that is searched has no name in itself.
            yield from slides if slides != [folder] else parts[:1]
            files = [path for path in files if path not in parts]
        yield from (path for path in files if path.is_file())


def _may_be_dicom(path: Path) -> bool:
    """By its name: those of archives often have none but numbers."""
    return path.suffix.lower() in (".dcm", "") or path.suffix[1:].isdigit()


def without_predictions(folder: Path, paths: Sequence[Path]) -> list[Path]:
    """Those of `paths`, all below `folder`, that are in no folder of predictions below it."""
    made = {path.parent for path in paths if path.name == PREDICTED_WITH} - {folder}
    return [path for path in paths if made.isdisjoint(path.parents)] if made else list(paths)


def is_plain_image(path: Path, slide: Slide) -> bool:
    """Whether a `slide` is just an image of a tile's size: one level in one piece, without associated images."""
    full = slide.levels[0]
    is_cut = full.tile_width < full.width and full.tile_height < full.height
    is_alone = len(slide.levels) == 1 and not slide.associated_names
    is_small = is_alone and not is_cut and full.width * full.height <= _LARGEST_TILE
    return is_small and path.suffix.lower() in IMAGE_SUFFIXES


def _is_mask(path: Path) -> bool:
    return path.parent.name.lower() in _MASK_FOLDERS or path.stem.lower().endswith(_MASK_ENDS)


def name_without_ending(path: Path) -> str:
    """The name of an image or slide without its ending; folders of DICOM files have none, even with points."""
    has_ending = path.suffix.lower() in IMAGE_SUFFIXES | SLIDE_SUFFIXES | POLYGON_SUFFIXES
    return path.stem if has_ending else path.name


def _bare(path: Path) -> str:
    """The name that an image and its mask share."""
    stem = clean_name(name_without_ending(path))
    stem = next((stem[: -len(end)] for end in _MASK_ENDS if stem.lower().endswith(end)), stem)
    return stem[: -len(_OME)] if stem.lower().endswith(_OME) else stem
