"""What lies in a folder, by names alone: images and slides, their masks, and the rest; and which TIFF is a plain image.

Masks are recognised by their place: NAME.geojson, NAME_mask.png (any image ending) beside the image, or NAME with any
such ending in a folder called mask, masks, label, labels or annotations next to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cells import SLIDE_SUFFIXES
from .identifiers import clean_name, tell_apart, unicode_form
from .polygons import POLYGON_SUFFIXES
from .tiles import IMAGE_SUFFIXES

PREDICTED_WITH = "predicted_with.json"
"""The file that makes a folder one of predictions, whose maps are no data."""

_MASK_FOLDERS = frozenset({"mask", "masks", "label", "labels", "annotations"})
_MASK_ENDS = ("_mask", "-mask", ".mask")
_LARGEST_TILE = 2048**2  # pixels; a TIFF of one level with more is cut into tiles like a slide


def files_in(folder: Path) -> tuple[list[Path], dict[Path, Path], dict[str, int]]:
    """(images and slides, image -> its mask, number of other files by ending); hidden files and folders of predictions
    are passed over.

    Raises:
        ValueError: two files whose names differ only in their Unicode form.
    """
    images: dict[tuple[str, str], list[Path]] = {}
    masks: dict[tuple[str, str], Path] = {}
    others: Counter[str] = Counter()
    forms: dict[str, Path] = {}
    for path in without_predictions(folder, sorted(folder.rglob("*"))):
        inside = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") for part in inside.parts):
            continue
        if (other := forms.setdefault(unicode_form(str(inside)), path)) != path:
            raise ValueError(f"{tell_apart(other, path)} are both there; rename or remove one")
        suffix = path.suffix.lower()
        if suffix == ".geojson" or (suffix in POLYGON_SUFFIXES | IMAGE_SUFFIXES and _is_mask(path)):
            home = path.parent.parent if path.parent.name.lower() in _MASK_FOLDERS else path.parent
            masks[clean_name(str(home)), _bare(path)] = path
        elif suffix in IMAGE_SUFFIXES | SLIDE_SUFFIXES:
            home = path.parent.parent if path.parent.name.lower() in ("image", "images") else path.parent
            images.setdefault((clean_name(str(home)), _bare(path)), []).append(path)
        else:
            others[suffix or path.name] += 1
    paired = {path: masks[key] for key, paths in images.items() if key in masks for path in paths}
    return sorted(path for paths in images.values() for path in paths), paired, dict(others)


def without_predictions(folder: Path, paths: Sequence[Path]) -> list[Path]:
    """Those of `paths`, all below `folder`, that lie in no folder of predictions; `folder` itself may be one."""
    made = {path.parent for path in paths if path.name == PREDICTED_WITH} - {folder}
    return [path for path in paths if made.isdisjoint(path.parents)] if made else list(paths)


def is_plain_image(path: Path, slide: Any) -> bool:
    """Whether what opened as `slide` is an image of a tile's size: one level in one piece, with nothing beside it."""
    full = slide.levels[0]
    is_cut = full.tile_width < full.width and full.tile_height < full.height
    is_alone = len(slide.levels) == 1 and not slide.associated_names
    is_small = is_alone and not is_cut and full.width * full.height <= _LARGEST_TILE
    return is_small and path.suffix.lower() in IMAGE_SUFFIXES


def _is_mask(path: Path) -> bool:
    return path.parent.name.lower() in _MASK_FOLDERS or path.stem.lower().endswith(_MASK_ENDS)


def _bare(path: Path) -> str:
    """The name that an image and its mask share."""
    stem = clean_name(path.stem)
    return next((stem[: -len(end)] for end in _MASK_ENDS if stem.lower().endswith(end)), stem)
