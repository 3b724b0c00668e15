"""Duplicate images; if two patients share one, any split leaks."""

from __future__ import annotations

import hashlib
import stat
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from ...utils.words import counted
from ..dataset import Dataset, ImageSource, Problem, Region, Tile
from ..slides.opened import pixel_file

_LOOKED_AT = 4096  # bytes: a page
_PLACES = 64
_WITHOUT_PIXELS = (".mrxs", ".vms")  # these files of slides only name others


def duplicate_notices(dataset: Dataset, *, leaks_alone: bool = False) -> list[Problem]:
    """A notice if tiles show the same picture: the same file or region, or files that are identical; and one if slides
    are identical.

    Only files of equal size are read: images in full if their middles are equal, slides at `_PLACES` places.

    Args:
        dataset: the tiles to compare.
        leaks_alone: whether to report only pictures that several patients share.
    """
    found = _same_slides(dataset, leaks_alone)
    groups = [tiles for tiles in equal_pictures(dataset.tiles).values() if len(tiles) > 1]
    leaks = [tiles for tiles in groups if len({tile.group for tile in tiles}) > 1]
    groups = leaks if leaks_alone else groups
    if not groups:
        return found
    count = sum(len(tiles) for tiles in groups)
    first = (leaks or groups)[0]
    shown = f"{first[0].id} and {first[1].id}"
    if leaks:
        other = next(tile for tile in first if tile.group != first[0].group)
        shown = f"{first[0].id} of {first[0].group} and {other.id} of {other.group}"
    of_two = f", {len(leaks)} of them in two patients, so a split can leak" if leaks else ""
    appear = f"{counted(len(groups), 'picture')} {'appears' if len(groups) == 1 else 'appear'} more than once"
    return [*found, Problem(dataset.root, f"{appear}, in {count} tiles{of_two}: {shown}")]


def _same_slides(dataset: Dataset, leaks_alone: bool) -> list[Problem]:
    """A notice if the data set has a slide under several names."""
    patients = {tile.image.slide: tile.group for tile in dataset.tiles if isinstance(tile.image, Region)}
    by_content: dict[bytes, list[Path]] = defaultdict(list)
    scans: dict[Path, list[Path]] = defaultdict(list)
    for slide in patients:
        if slide.suffix.lower() not in _WITHOUT_PIXELS:
            scans[pixel_file(slide)].append(slide)
    digests = _digests(scans, _sampled)
    for file, slides in scans.items():
        by_content[digests.get(file, str(file).encode())] += slides
    groups = [slides for slides in by_content.values() if len(slides) > 1]
    leaks = [slides for slides in groups if len({patients[slide] for slide in slides}) > 1]
    groups = leaks if leaks_alone else groups
    if not groups:
        return []
    first, other = (leaks or groups)[0][:2]
    if leaks:
        other = next(slide for slide in leaks[0] if patients[slide] != patients[first])
    whose = [f" of {patients[slide]}" * bool(leaks) for slide in (first, other)]
    of_two = f", {len(leaks)} of them in two patients, so a split can leak" if leaks else ""
    reason = f"{counted(len(groups), 'slide')} under several names{of_two}: {first}{whose[0]} and {other}{whose[1]}"
    return [Problem(dataset.root, reason)]


def _key(picture: ImageSource) -> Hashable:
    """A key shared by equal pictures; a custom picture without a hash equals no other."""
    return picture if isinstance(picture, Hashable) else id(picture)


def equal_pictures(tiles: Sequence[Tile]) -> dict[Hashable, list[Tile]]:
    """The tiles by their picture; tiles of identical image files are together."""
    by_picture: dict[Hashable, list[Tile]] = defaultdict(list)
    contents = _digests({tile.image for tile in tiles if isinstance(tile.image, Path)}, _whole)
    for tile in tiles:
        image = _key(tile.image)
        by_picture[contents.get(image, image) if isinstance(image, Path) else image].append(tile)
    return by_picture


def _digests(files: Iterable[Path], digest: Callable[[Path], bytes]) -> dict[Path, bytes]:
    """The `digest` of each file that may equal another."""
    alike: dict[Hashable, list[Path]] = defaultdict(list)
    for file in files:
        alike[_size(file)].append(file)
    for same in [same for size, same in alike.items() if size and len(same) > 1]:
        for file in same:
            alike[_middle(file)].append(file)
    return {
        file: digest(file) for key, same in alike.items() if isinstance(key, bytes) and len(same) > 1 for file in same
    }


def _whole(file: Path) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest()


def _sampled(slide: Path) -> bytes:
    """A digest of pages at places of a slide: different scans differ everywhere."""
    size, found = slide.stat().st_size, hashlib.sha256()
    with slide.open("rb") as content:
        for place in range(_PLACES):
            content.seek(size * place // _PLACES)
            found.update(content.read(_LOOKED_AT))
    return found.digest()


def _size(file: Path) -> int:
    """0 if it is not a file, which `check_tiles` reports."""
    try:
        state = file.stat()
    except OSError:
        return 0
    return state.st_size if stat.S_ISREG(state.st_mode) else 0


def _middle(file: Path) -> bytes:
    """Bytes that differ in most pictures of one size: headers are alike, and ends may be."""
    with file.open("rb") as content:
        content.seek(file.stat().st_size // 2)
        return content.read(_LOOKED_AT)
