"""What `examine` says of slides and polygons: scale and where it came from, classes and their counts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..dataset import Dataset, Problem, Region, maps_of
from ..images.pictures import file_of
from ..images.polygons import Polygons, polygon_classes
from ..slides.opened import UnreadableSlideError, opened

_ANOTHER_SCALE = 1.4  # times another's field of view: 20x beside 40x, and not 0.25 beside 0.23 micrometres


def slides_of_tiles(dataset: Dataset) -> list[dict[str, Any]]:
    """One entry a slide that can be opened, by path: "path", "width", "height", "levels", "mpp" of level 0 or None,
    "mpp_from" (where it came from, "" unknown), "magnification", "vendor", "tiles", "tile_width" (what a tile shows, in
    micrometres, None where mpp is unknown; in pixels of level 0 as "tile_pixels") and "problems"."""
    regions: dict[Path, list[Region]] = defaultdict(list)
    for tile in dataset.tiles:
        if isinstance(tile.image, Region):
            regions[tile.image.slide].append(tile.image)
    found = []
    for path, own in sorted(regions.items()):
        try:
            slide = opened(path)
            downsamples = [float(level.downsample) for level in slide.levels]
            pixels = sorted(region.width * downsamples[region.level] for region in own)[len(own) // 2]
        except (UnreadableSlideError, IndexError):  # `check_tiles` says so
            continue
        full, told = slide.levels[0], dataset.slide_mpp.get(path)
        mpp = told or slide.mpp
        found.append(
            {
                "path": str(path),
                "width": full.width,
                "height": full.height,
                "levels": len(slide.levels),
                "mpp": mpp,
                "mpp_from": "manifest" if told else getattr(slide, "mpp_source", ""),
                "magnification": slide.magnification,
                "vendor": slide.vendor,
                "tiles": len(own),
                "tile_pixels": pixels,
                "tile_width": mpp and pixels * mpp,
                "problems": [word for word in slide.problems if not told or not _is_of_mpp(word, slide)],
            }
        )
    return found


def _is_of_mpp(problem: str, slide: Any) -> bool:
    """Whether it says that the slide has no mpp, or a wrong one."""
    return "pass mpp" in problem or problem == getattr(slide, "why_no_mpp", "")


def scale_notices(dataset: Dataset, slides: Sequence[dict[str, Any]] | None = None) -> list[Problem]:
    """A notice where tiles of some slides show more of the tissue than those of others, or the scale is unknown.

    Args:
        dataset: whose slides they are.
        slides: as `slides_of_tiles` finds them.
    """
    slides = slides_of_tiles(dataset) if slides is None else slides
    notices = []
    unknown = [slide["path"] for slide in slides if slide["mpp"] is None]
    if unknown:
        share = "" if len(slides) == 1 else f", of {len(unknown)} of the {len(slides)} slides"
        reason = f"its micrometres per pixel are unknown{share}: so is the scale of its tiles; add a column mpp"
        notices.append(Problem(Path(unknown[0]), reason))
    scales = _scales([slide for slide in slides if slide["mpp"] is not None])
    if len(scales) > 1:
        shown = ", ".join(f"{own[0]['tile_width']:.4g} on {len(own)}" for own in scales)
        odd = min(scales, key=len)
        notices.append(
            Problem(
                dataset.root,
                f"tiles of different width, in micrometres: {shown} slides (first {odd[0]['path']}): the network "
                "sees two magnifications as one; set data.mpp, or separate the slides",
            )
        )
    return notices


def _scales(slides: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The slides by what their tiles show: a list for each scale, the smallest first."""
    scales: list[list[dict[str, Any]]] = []
    for slide in sorted(slides, key=lambda slide: slide["tile_width"]):
        if not scales or slide["tile_width"] > _ANOTHER_SCALE * scales[-1][0]["tile_width"]:
            scales.append([])
        scales[-1].append(slide)
    return scales


def polygons_of_tiles(dataset: Dataset) -> tuple[dict[str, Any], list[Problem]]:
    """({"files", "classes": name -> {"polygons", "files"}, "listed", "without"}, notices); ({}, []) without polygons.

    "listed" are the classes that polygons are drawn by, () where any polygon is foreground; "without" the slides and
    images that have no polygons while others do. "" is the class of a polygon that has none.
    """
    drawn: dict[Path, Polygons] = {}
    images: dict[Path, bool] = {}
    for tile in dataset.tiles:
        own = [picture for _, picture in maps_of(tile) if isinstance(picture, Polygons)]
        drawn.update({picture.file: picture for picture in own})
        images[file_of(tile.image)] = images.get(file_of(tile.image), False) or bool(own)
    if not drawn:
        return {}, []
    polygons: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for file in sorted(drawn):
        try:
            counts = polygon_classes(file)
        except ValueError:  # `check_tiles` says so
            continue
        polygons.update(counts)
        files.update(counts.keys())
    listed = next(iter(drawn.values())).classes
    classes = {name: {"polygons": count, "files": files[name]} for name, count in polygons.most_common()}
    without = sorted(str(image) for image, has in images.items() if not has)
    found = {"files": len(drawn), "classes": classes, "listed": list(listed), "without": without}
    return found, _polygon_notices(dataset, found)


def _polygon_notices(dataset: Dataset, found: dict[str, Any]) -> list[Problem]:
    reasons = [
        f"data.polygon_classes lists {name!r}, but no polygon has that class"
        for name in found["listed"][1:]  # the first stands where no polygon is
        if name not in found["classes"]
    ]
    return [Problem(dataset.root, reason) for reason in reasons]
