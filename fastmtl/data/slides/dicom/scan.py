"""Scan a DICOM slide: its levels and the images beside it, from the headers of the files of a series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..empty_tiles import said_of_empty
from ..errors import SlideError
from ..joined_files import PART, end_of
from ..raster import Layout, Raster, levels_of
from ..scale import believed
from .instances import Instance, read_instance
from .levels import level_of
from .series import files_of_slide

_BESIDE = {"LABEL": "label", "OVERVIEW": "macro", "THUMBNAIL": "thumbnail"}
_SAME = 0.02  # by how much a level's scale may differ from what its size says
_TOLD = 1e-3  # and by how much without a word, besides rounding


def scan_dicom(path: Path, max_pixels: int) -> Layout:
    """Read the headers of a series, and no pixels.

    Args:
        path: a folder with one series, or a file of a series in its folder.
        max_pixels: a level 0 that declares more is refused.

    Raises:
        SlideError: a file is damaged, missing or of a kind that is not read; the message says which.
        ImportError: pydicom is not installed.
    """
    files = files_of_slide(path)
    try:
        instances = _distinct([read_instance(file) for file in files])
        return _scan(path, files[0].parent, instances, max_pixels)
    except ValueError as error:
        raise SlideError(path, str(error)) from error
    except OSError as error:
        raise SlideError(path, f"cannot be read: {error.strerror}") from error


def _distinct(instances: Sequence[Instance]) -> list[Instance]:
    """Without copies of a file under another name."""
    return list({instance.uid: instance for instance in reversed(instances)}.values())[::-1]


def _scan(path: Path, folder: Path, instances: list[Instance], max_pixels: int) -> Layout:
    groups: dict[tuple[int, int], list[tuple[int, Instance]]] = defaultdict(list)
    beside: dict[str, tuple[int, Instance]] = {}
    problems: list[str] = []
    for number, instance in enumerate(instances):
        if instance.flavour == "VOLUME":
            groups[instance.width, instance.height].append((number, instance))
        elif instance.flavour in _BESIDE:
            beside.setdefault(_BESIDE[instance.flavour], (number, instance))
        else:
            problems.append(f"{instance.file.name} is set aside: {instance.flavour[:16] or 'no kind'} is no level")
    ordered = sorted(groups, reverse=True)
    width, height = ordered[0]
    if width * height > max_pixels:
        raise SlideError(path, f"declares {width}x{height} pixels, more than max_pixels={max_pixels:,}")
    base = groups[ordered[0]][0][1]
    if base.is_resampled:
        problems.append(f"its finest level, {base.file.name}, was computed from a finer one, which may be missing")
    rasters: list[Raster] = []
    for size in ordered:
        level = sorted(groups[size], key=lambda one: one[1].part)
        if not _shows_the_same(level[0][1], base):
            problems.append(f"a level of {size[0]}x{size[1]} is left out: it does not show the slide's view")
            continue
        problems += _other_scale(level[0][1], base)
        try:
            rasters.append(level_of(folder, level))
        except ValueError as error:
            raise ValueError(f"its level of {size[0]}x{size[1]} cannot be read: {error}") from error
    associated: dict[str, Raster] = {}
    for name in (known for known in ("thumbnail", "label", "macro") if known in beside):
        try:
            associated[name] = level_of(folder, [beside[name]])
        except ValueError as error:
            problems.append(f"{name} is left out: {error}")
    parts = tuple(instance.file for instance in instances)
    damage = _truncated(
        rasters, [part.name for part in parts], np.array([end_of(parts, at * PART) for at in range(len(parts))])
    )
    problems += said_of_empty(rasters)
    micrometres = base.spacing and (1000 * base.spacing[0], 1000 * base.spacing[1])
    scale = believed(micrometres, "DICOM", "DICOM's PixelSpacing", base.magnification)
    return Layout(
        reader="native",
        vendor="dicom",
        levels=levels_of(tuple(rasters)),
        rasters=tuple(rasters),
        associated=associated,
        mpp=scale.mpp,
        mpp_source=scale.source,
        why_no_mpp=scale.why_no_mpp,
        magnification=scale.magnification,
        bounds=(0, 0, width, height),
        damage=damage,
        problems=(*([damage] if damage else []), *problems, *scale.said),
        files=parts,
    )


def _shows_the_same(level: Instance, base: Instance) -> bool:
    """Whether a level can be the same view, smaller: by the sides of its size, and by its scale."""
    ratio = base.width / level.width
    if abs(base.height / ratio - level.height) > max(2.0, 0.01 * level.height):
        return False
    if not level.spacing or not base.spacing or min(base.spacing) <= 0:
        return True
    few = _SAME + 2 / min(level.width, level.height)  # sizes are rounded
    return abs(level.spacing[0] / base.spacing[0] / ratio - 1) <= few


def _other_scale(level: Instance, base: Instance) -> list[str]:
    """A level that `_shows_the_same`, with another scale than its size says (padded, for example), in words."""
    if not level.spacing or not base.spacing or min(base.spacing) <= 0:
        return []
    by_size, by_spacing = base.width / level.width, level.spacing[0] / base.spacing[0]
    if abs(by_spacing / by_size - 1) <= _TOLD + 2 / min(level.width, level.height):
        return []
    what = f"a level of {level.width}x{level.height} is {by_size:.4g} times smaller by its size"
    return [f"{what} and {by_spacing:.4g} times by its PixelSpacing: the size is used"]


def _truncated(rasters: Sequence[Raster], names: Sequence[str], ends: np.ndarray) -> str:
    """The parts of the levels that lie beyond the ends of their files; "" if there are none."""
    found = []
    for number, raster in enumerate(rasters):
        part = raster.offsets // PART
        is_lost = (raster.counts > 0) & (raster.offsets + raster.counts > ends[part])
        for name in [names[one] for one in np.unique(part[is_lost]).tolist()]:
            lost = np.count_nonzero(is_lost & (part == names.index(name)))
            found.append(f"{lost} of {raster.offsets.size} tiles of level {number} lie beyond the end of {name}")
    return f"truncated: {', '.join(found)}; copy it again" if found else ""
