"""The report of `examine` on slides and polygons: scale and its source, classes and their counts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..dataset import Dataset, Problem, Region, maps_of
from ..images.pictures import file_of
from ..images.polygons import Polygons, polygon_classes
from ..slides.opened import UnreadableSlideError, opened
from ..slides.slide import Slide

_ANOTHER_SCALE = 1.4  # ratio of tile widths: separates 20x from 40x, but not 0.25 from 0.23 micrometres


def slides_of_tiles(dataset: Dataset) -> list[dict[str, Any]]:
    """One entry per slide that can be opened, by path: "path", "width", "height", "levels", "mpp" of level 0 or None,
    "mpp_from" (its source, "" unknown), "magnification", "vendor", "tiles", "tile_width" (the width of a tile in
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
        except (UnreadableSlideError, IndexError):  # `check_tiles` reports it
            continue
        full, given = slide.levels[0], dataset.slide_mpp.get(path)
        mpp = given or slide.mpp
        found.append(
            {
                "path": str(path),
                "width": full.width,
                "height": full.height,
                "levels": len(slide.levels),
                "mpp": mpp,
                "mpp_from": "manifest" if given else slide.mpp_source,
                "magnification": slide.magnification,
                "vendor": slide.vendor,
                "tiles": len(own),
                "tile_pixels": pixels,
                "tile_width": mpp and pixels * mpp,
                "problems": [problem for problem in slide.problems if not (given and _is_about_mpp(problem, slide))],
            }
        )
    return found


def _is_about_mpp(problem: str, slide: Slide) -> bool:
    """Whether a problem is that the slide has no mpp, or a wrong one."""
    return "pass mpp" in problem or problem == slide.why_no_mpp


def scale_notices(dataset: Dataset, slides: Sequence[dict[str, Any]] | None = None) -> list[Problem]:
    """Notices if tiles of some slides are wider than those of others, in micrometres, or the scale is unknown.

    Args:
        dataset: with the slides.
        slides: the result of `slides_of_tiles`.
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
    """The slides by the width of their tiles: a list for each scale, the smallest first."""
    scales: list[list[dict[str, Any]]] = []
    for slide in sorted(slides, key=lambda slide: slide["tile_width"]):
        if not scales or slide["tile_width"] > _ANOTHER_SCALE * scales[-1][0]["tile_width"]:
            scales.append([])
        scales[-1].append(slide)
    return scales


def polygons_of_tiles(dataset: Dataset) -> tuple[dict[str, Any], list[Problem]]:
    """({"files", "classes": name -> {"polygons", "files", "drawn"}, "listed", "without"}, notices); ({}, []) without
    polygons.

    "drawn" is `Polygons.drawn_as`; "listed" are the classes that polygons are drawn by, () where any polygon is
    foreground; "without" the slides and images without polygons, while others have some. The class "" counts polygons
    without a class.
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
        except ValueError:  # `check_tiles` reports it
            continue
        polygons.update(counts)
        files.update(counts.keys())
    one = next(iter(drawn.values()))
    listed = one.classes
    classes = {
        name: {"polygons": count, "files": files[name], "drawn": one.drawn_as(name)}
        for name, count in polygons.most_common()
    }
    shown = {one.class_of(name) for name in classes}
    without = sorted(str(image) for image, has in images.items() if not has)
    notices = [
        Problem(dataset.root, f"data.polygon_classes lists {name!r}, but no polygon has that class")
        for name in listed[1:]  # the first is drawn where no polygon is
        if name not in shown
    ]
    return {"files": len(drawn), "classes": classes, "listed": list(listed), "without": without}, notices
